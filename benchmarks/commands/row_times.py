"""Seconds of a row by its tokens, beside the time that plans give it: what short rows and large layers cost.

    python -m benchmarks row-times --cases 70b:8:fp8,70b:8:bf16 --out row-times.json

A case is SIZE:LAYERS:WEIGHTS. The model has so many layers of that size, random weights and LoRA of rank 16 on all
linear layers. A row of 640 tokens is one pair (128 of prompt, twice 256), longer ones are several. Each is computed
with all activations kept, forward and backward with its reference, and timed from its call to the end of the GPU's
work; `launched` is the share of that time in which the host was busy. `--profile TOKENS` adds the kernels that took
most of the GPU's time in one row of so many.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.results import Results, Row
from benchmarks.harness.systems import System
from benchmarks.harness.workloads import SIZES, Lengths, texts

PAIR = Lengths(128, 256, 256)
TINY_PAIR = Lengths(8, 16, 16)
WARM_UP, TIMED = 2, 5


def parse_case(text: str) -> tuple[str, int, str]:
    """Return size, layers and precision of a case.

    Raises:
        ValueError: it is no such case.
    """
    size, layers, weights = text.split(":")
    if size not in SIZES or not layers.isdecimal() or not int(layers) or weights not in ("bf16", "fp8", "nf4"):
        raise ValueError(f"case {text!r}: give SIZE:LAYERS:WEIGHTS, such as 70b:8:fp8")
    return size, int(layers), weights


def measure(size: str, layers: int, weights: str, counts: list[int], profiled: int | None) -> Row:
    """Time the rows of one model."""
    from benchmarks.harness.clock import now
    from benchmarks.harness.loading import Origin, device_of, load, trainer_for, versions
    from wishbone.engine.execution import Execution
    from wishbone.preference.metrics import PairMetrics

    system = System("wishbone", weights, in_place=weights != "bf16")  # type: ignore[arg-type]
    device = device_of(system)
    pair = PAIR if device.type == "cuda" else TINY_PAIR
    name = f"{size} of {layers} layers"
    SIZES[name] = replace(SIZES[size], layers=layers)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(
            system,
            load(system, Origin(name, None), device),
            device,
            folder,
            texts([pair] * max(counts), SIZES[size].vocabulary),
            per_device_train_batch_size=max(counts),
            max_steps=1,
            reference_store="off",
            guard="off",
        )
        step = trainer.preference_step
        (pairs,) = (batch["pairs"] for batch in islice(trainer.get_train_dataloader(), 1))
        execution = Execution.treating(10**9, "keep")

        def run(count: int) -> tuple[float, float]:
            begun = now()
            step.backward([pairs[:count]], PairMetrics(1.0), execution)
            launched = time.perf_counter()
            ended = now()
            for parameter in step.policy.model.parameters():
                parameter.grad = None
            return ended - begun, (launched - begun) / (ended - begun)

        rows = []
        for count in counts:
            times = [run(count) for _ in range(WARM_UP + TIMED)][WARM_UP:]
            seconds = median(one for one, _ in times)
            row = {"tokens": count * pair.unique, "seconds": round(seconds, 5)}
            row["launched"] = round(median(share for _, share in times), 3)
            rows.append(row | _planned(name, weights, count, pair))
            print(f"{name}, {weights}: {rows[-1]}", flush=True)
        found: Row = {"rows": rows, "one_pass": getattr(step.reference, "in_lockstep", None), "status": "ok"}
        if profiled is not None:
            found["profile"] = _profile(lambda: run(max(1, profiled // pair.unique)), profiled)
    return found | {"versions": versions(system)}


def _planned(size: str, weights: str, count: int, pair: Lengths) -> Row:
    """Return the seconds that a plan gives such a row on an H200."""
    import torch

    from benchmarks.harness.random_model import config_of
    from wishbone.planning.gpus import find_gpu
    from wishbone.planning.memory import MemoryPlan
    from wishbone.planning.model_shape import read_shape
    from wishbone.planning.step_time import step_seconds
    from wishbone.planning.work import Work

    shape = read_shape(config_of(SIZES[size], torch.bfloat16).to_dict())
    sequence = pair.prompt + pair.chosen
    work = Work(
        tokens=count * pair.unique,
        scored=count * pair.scored,
        contexts=count * (2 * sequence**2 - pair.prompt**2) / 2,
        passes=3,
    )
    plan = MemoryPlan(weights, row_tokens=count * pair.unique)  # type: ignore[arg-type]
    seconds = step_seconds(shape, plan, work, find_gpu("H200"))
    return {"planned": None if seconds is None else round(seconds, 5)}


def _profile(run: Any, tokens: int) -> Row:
    """Return the kernels of one row by their time, in seconds, and how often they ran."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    events = sorted(profiled.key_averages(), key=lambda one: -one.self_device_time_total)
    total = sum(one.self_device_time_total for one in events) / 1e6
    most = {one.key[:90]: [round(one.self_device_time_total / 1e6, 5), one.count] for one in events[:30]}
    return {"tokens": tokens, "gpu_seconds": round(total, 5), "kernels": most}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks row-times", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="70b:8:fp8,70b:8:bf16,8b:8:fp8", help="cases, by commas")
    parser.add_argument("--pairs", default="1,2,4,8,16", help="pairs of a row, by commas")
    parser.add_argument("--profile", type=int, metavar="TOKENS", help="look at the kernels of such a row")
    parser.add_argument("--out", type=Path, help="file of results; an existing one is continued")
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    options = parser.parse_args()
    try:
        cases = [(text, *parse_case(text)) for text in options.cases.split(",")]
        counts = [int(text) for text in options.pairs.split(",")]
    except ValueError as error:
        parser.error(str(error))
    results = Results.read(options.out) if options.out and options.out.exists() else Results()
    results.begin_call(options.commit)
    from benchmarks.harness.loading import import_libraries

    import_libraries(System("wishbone", "bf16"))
    for text, size, layers, weights in cases:
        row = measure(size, layers, weights, counts, options.profile)
        results.add({"kind": "row-times", "size": size, "system": f"wishbone-{weights}", "case": text} | row)
        if options.out:
            results.write(options.out)


if __name__ == "__main__":
    main()
