"""TRL's data preparation beside `tokenize_pairs`: rows a second, and whether the token ids are the same.

    python -m benchmarks tokenize-pairs --data pairs.jsonl --tokenizer DIRECTORY [--rows 5000] [--repeats 3]

Each run starts with a freshly loaded tokenizer and without any cache; the median of the runs counts. TRL only tokenizes
here: without truncation it drops no rows. Give rows that are all different: `tokenize_pairs` tokenizes repeated text of
a batch once, so repetitions would favour it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import datasets
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.dpo_trainer import DPOTrainer

from wishbone.data.source import load_pairs
from wishbone.data.tokenize import ID_COLUMNS, tokenize_pairs

Prepare = Callable[[Dataset, PreTrainedTokenizerBase], Dataset]


def prepare_with_trl(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    return DPOTrainer._prepare_dataset(trainer, pairs, tokenizer, arguments, "train")


def run(prepare: Prepare, pairs: Dataset, tokenizer: str, repeats: int) -> tuple[float, Dataset]:
    """Return the median of the seconds, and the last result."""
    seconds = []
    for _ in range(repeats):
        fresh = AutoTokenizer.from_pretrained(tokenizer)
        start = time.perf_counter()
        prepared = prepare(pairs, fresh)
        seconds.append(time.perf_counter() - start)
    return median(seconds), prepared


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks tokenize-pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="pairs in any layout that is recognized")
    parser.add_argument("--tokenizer", required=True, help="a directory or a name of the hub")
    parser.add_argument("--rows", type=int, help="take only the first rows")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    datasets.disable_caching()
    datasets.disable_progress_bars()

    start = time.perf_counter()
    pairs = load_pairs(options.data)
    loading = time.perf_counter() - start
    pairs = pairs.select(range(min(options.rows or len(pairs), len(pairs))))
    print(f"{len(pairs)} rows on {os.cpu_count()} cores; read and checked in {loading:.2f} s")

    results: dict[str, tuple[float, Any]] = {}
    for name, prepare in (("TRL", prepare_with_trl), ("Wishbone", tokenize_pairs)):
        results[name] = run(prepare, pairs, options.tokenizer, options.repeats)
        print(f"{name:9} {len(pairs) / results[name][0]:9.0f} rows/s")
    (trl_seconds, expected), (seconds, found) = results.values()
    same = all(found[name][:] == expected[name][:] for name in ID_COLUMNS)
    print(f"{'ratio':9} {trl_seconds / seconds:9.2f}")
    print(f"token ids {'identical' if same else 'DIFFER'}")
    raise SystemExit(0 if same else 1)
