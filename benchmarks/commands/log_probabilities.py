"""How far from float32's are log-probabilities when weights have fewer bits? A real model, real pairs.

    python -m benchmarks log-probabilities --data PAIRS.json [--pairs 60] [--out FILE]

Each system scores every completion token of the file's last pairs through Wishbone's own layers, in a process of its
own. The first one, float32, is the reference, token by token and completion by completion. Preference optimization sees
less of the difference: policy and reference have the same weights and the same errors.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.pairs import read_pairs, write_pairs
from benchmarks.harness.results import Row
from benchmarks.harness.systems import parse_system
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.harness.worker import Progress

SYSTEMS = "wishbone-f32,wishbone-bf16,wishbone-int8,wishbone-fp8,wishbone-nf4"
MAX_LENGTH = 1024


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Score the pairs and compare with the first system's scores, which the request's file keeps (in the child)."""
    import numpy as np

    exact = Path(request["exact"])
    if not exact.exists():
        progress.phase(f"scoring with {request['first']}")
        first = _scores(request, request["first"])
        np.savez(exact, logps=first["logps"], hits=first["hits"], lengths=first["lengths"])
    progress.phase("scoring")
    return differences(_scores(request, request["system"]), dict(np.load(exact)))


def _scores(request: Row, system: str) -> dict[str, np.ndarray]:
    """Return log-probabilities and greedy hits of all tokens (float64, bool) and the tokens of each completion."""
    import numpy as np
    import torch
    from datasets import Dataset

    import wishbone
    from wishbone.data.batch import truncated_pair
    from wishbone.data.tokenize import tokenize_pairs
    from wishbone.fused.layers import FusedLayers
    from wishbone.policy.policy import Policy

    weights = parse_system(system).weights
    model, tokenizer = wishbone.FastLanguageModel.from_pretrained(
        request["directory"],
        max_seq_length=MAX_LENGTH,
        dtype=torch.float32 if weights == "f32" else torch.bfloat16,
        load_in_4bit=weights == "nf4",
        load_in_fp8=weights == "fp8",
        load_in_rotated_int8=weights == "int8",
        load_in_8bit=weights == "llm-int8",
    )
    cuda = torch.cuda.is_available()
    policy = Policy(model, row_multiple=128 if cuda else 1, fused=FusedLayers(model) if cuda else None)
    logps, hits, lengths = [], [], []
    for row in tokenize_pairs(Dataset.from_list(read_pairs(request["pairs"])["heldout"]), tokenizer):
        ids = (list(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected"))
        pair = truncated_pair(*ids, max_length=MAX_LENGTH, keep_end=False)
        batch = policy.collate([pair])
        with torch.no_grad(), policy.running():
            scores = policy.token_scores(batch)
        logps.append(scores.logps.double().cpu().numpy())
        hits.append(scores.is_top1.cpu().numpy())
        lengths += [len(pair.chosen) - max(pair.chosen_start, 1), len(pair.rejected) - max(pair.rejected_start, 1)]
    return {"logps": np.concatenate(logps), "hits": np.concatenate(hits), "lengths": np.array(lengths)}


def differences(scores: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> dict[str, float]:
    """Return how far scores are from the exact ones, in nats."""
    import numpy as np

    assert exact["lengths"].sum() == exact["logps"].size
    starts = np.concatenate(([0], np.cumsum(exact["lengths"])[:-1]))
    error = scores["logps"] - exact["logps"]
    sequences = np.add.reduceat(error, starts)
    return {
        "token_mean_absolute": float(np.abs(error).mean()),
        "token_99_percent": float(np.quantile(np.abs(error), 0.99)),
        "token_bias": float(error.mean()),
        "completion_mean_absolute": float(np.abs(sequences).mean()),
        "margin_mean_absolute": float(np.abs(sequences[0::2] - sequences[1::2]).mean()),
        "perplexity_ratio": float(np.exp(-error.mean())),
        "greedy_agreement": float((scores["hits"] == exact["hits"]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks log-probabilities",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="pairs in any layout that Wishbone reads")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--systems", default=SYSTEMS, help="Wishbone's systems, by commas; the first is the reference")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--limit-seconds", type=float, default=600, help="time for one system")
    jobs.add_options(parser)
    options = parser.parse_args()
    from wishbone.model.load import resolve_model

    systems = options.systems.split(",")
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model": resolve_model(options.model),
            "pairs": write_pairs(Path(folder) / "pairs.json", options.data, 0, options.pairs),
            "first": systems[0],
            "exact": str(Path(folder) / "exact.npz"),
        }
        case = f"{Path(options.model).name}, {options.pairs} pairs"
        planned = [
            Job("log_probabilities", system, None, case, settings, limit_seconds=options.limit_seconds)
            for system in systems
        ]
        show(run_jobs(planned, options), "log_probabilities")
