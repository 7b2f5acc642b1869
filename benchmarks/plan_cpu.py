"""The memory that `wishbone plan` reckons for a processor beside the peak of `wishbone train`.

    python -m benchmarks plan-cpu --data PAIRS.json [--out benchmarks/results/plan-cpu.json]

SmolLM2-135M-Instruct in float32 with adapters trains two steps for every token budget, on one thread, once with every
activation kept and once with every layer recomputed. Each run is a process of its own, as a person starts it, and its
peak is that of its summary: resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

PAIRS_A_STEP, STEPS, MAX_LENGTH = 16, 2, 256
GIB = 2**30


def settings(data: Path, budget: int, treatment: str, directory: Path) -> list[str]:
    """Return the overrides of a run; its pairs are short enough to fill rows of the smallest budget."""
    return [
        f"data.train={data}",
        f"data.max_length={MAX_LENGTH}",
        "data.invalid_rows=drop",
        f"training.gradient_accumulation={PAIRS_A_STEP}",
        f"training.max_steps={STEPS}",
        f"training.token_budget={budget}",
        f"training.activations={treatment}",
        "training.reference_store=off",
        f"output.dir={directory}",
    ]


def run(data: Path, budget: int, treatment: str) -> dict[str, Any]:
    """Plan a run, train it, and return both."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "run.yaml"
        config.write_text("model: {name: smollm2-135m-instruct}\n", encoding="utf-8")
        overrides = settings(data, budget, treatment, Path(scratch) / "run")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        wishbone = [sys.executable, "-m", "wishbone"]
        planned = subprocess.run(
            [*wishbone, "plan", str(config), *overrides, "--gpu", "none", "--json"],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        subprocess.run([*wishbone, "train", str(config), *overrides], capture_output=True, check=True, env=environment)
        summary = json.loads((Path(scratch) / "run" / "summary.json").read_text(encoding="utf-8"))
    plan = json.loads(planned.stdout)
    reckoned, measured = plan["memory"]["total"] / GIB, summary["peak_memory_gib"]
    return {
        "budget": budget,
        "activations": treatment,
        "estimate_gib": round(reckoned, 3),
        "peak_gib": measured,
        "error": round(reckoned / measured - 1, 4),
        "items_gib": {name: round(size / GIB, 3) for name, size in plan["memory"]["items"].items()},
        "largest_row": plan["rows"]["largest"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plan-cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="preference pairs")
    parser.add_argument("--budgets", default="512,1024,2048", help="tokens of a row, by commas")
    parser.add_argument("--activations", default="keep,recompute", help="treatments, by commas")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    measurements = []
    for treatment in options.activations.split(","):
        for budget in map(int, options.budgets.split(",")):
            measurements.append(run(options.data.resolve(), budget, treatment))
            print(json.dumps(measurements[-1]), flush=True)
    report = {
        "benchmark": "plan-cpu",
        "command": "python -m benchmarks plan-cpu --data PAIRS.json",
        "date": f"{datetime.now():%Y-%m-%d}",
        "commit": _output("git", "rev-parse", "HEAD") + (" with changes" if _output("git", "status", "-s") else ""),
        "hardware": {"cores": os.cpu_count(), "machine": platform.machine()},
        "python": platform.python_version(),
        "measurements": measurements,
        "largest_error": max(abs(one["error"]) for one in measurements),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
