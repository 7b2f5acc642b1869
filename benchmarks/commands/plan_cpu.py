"""The memory that `wishbone plan` estimates for a CPU, beside the peak of `wishbone train`.

    python -m benchmarks plan-cpu --data PAIRS.json [--out benchmarks/results/plan-cpu.json]

SmolLM2-135M-Instruct in float32 with adapters trains two steps for every token budget, on one thread, once with every
activation kept and once with every layer recomputed. Each run is a process of its own, as a user starts it. The peak is
that of its summary: resident memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.harness.results import Row, this_call, write_json
from benchmarks.harness.wishbone_run import plan, train

PAIRS_A_STEP, STEPS, MAX_LENGTH = 16, 2, 256
GIB = 2**30


def settings(data: Path, budget: int, treatment: str) -> list[str]:
    """Return the overrides of a run, whose pairs are short enough to fill rows of the smallest budget."""
    return [
        f"data.train={data}",
        f"data.max_length={MAX_LENGTH}",
        "data.invalid_rows=drop",
        f"training.gradient_accumulation={PAIRS_A_STEP}",
        f"training.max_steps={STEPS}",
        f"training.token_budget={budget}",
        f"training.activations={treatment}",
        "training.reference_store=off",
    ]


def run(data: Path, budget: int, treatment: str) -> Row:
    """Plan a run, train it, and return both."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "run.yaml"
        config.write_text("model: {name: smollm2-135m-instruct}\n", encoding="utf-8")
        overrides = settings(data, budget, treatment)
        planned = plan(config, overrides, OMP_NUM_THREADS="1")
        measured = train(config, Path(scratch) / "run", overrides, OMP_NUM_THREADS="1").summary["peak_memory_gib"]
    estimate = planned["memory"]["total"] / GIB
    return {
        "budget": budget,
        "activations": treatment,
        "estimate_gib": round(estimate, 3),
        "peak_gib": measured,
        "error": round(estimate / measured - 1, 4),
        "items_gib": {name: round(size / GIB, 3) for name, size in planned["memory"]["items"].items()},
        "largest_row": planned["rows"]["largest"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plan-cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="pairs in any layout that Wishbone reads")
    parser.add_argument("--budgets", default="512,1024,2048", help="tokens of a row, by commas")
    parser.add_argument("--activations", default="keep,recompute", help="treatments, by commas")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    measurements = []
    for treatment in options.activations.split(","):
        for budget in map(int, options.budgets.split(",")):
            measurements.append(run(options.data.resolve(), budget, treatment))
            print(json.dumps(measurements[-1]), flush=True)
    if options.out:
        report = {"measurements": measurements, "largest_error": max(abs(one["error"]) for one in measurements)}
        write_json(options.out, {"benchmark": "plan-cpu", **this_call(), **report})
