"""The same training in bfloat16 and float32, on CUDA and on the CPU: do the losses agree?

    python -m benchmarks.precision --model smollm2-135m-instruct --data PAIRS.json [--steps 30] [--out FILE.json]

Trains LoRA with the same pairs, seed and order once in bfloat16 on CUDA, once in float32 on CUDA and once in float32 on
the CPU, each in a process of its own through `wishbone.train`, and puts the losses side by side. The last fifth of the
pairs is held out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

RUNS = {"cuda bfloat16": ("cuda", "bfloat16"), "cuda float32": ("cuda", "float32"), "cpu float32": ("cpu", "float32")}


def settings(model: str, data: Path, directory: Path, dtype: str, steps: int) -> dict[str, Any]:
    """The run's configuration."""
    return {
        "model": {"name": model, "dtype": dtype},
        "data": {"train": str(data), "eval_fraction": 0.2, "max_length": 1024, "invalid_rows": "drop"},
        "training": {"learning_rate": 5e-5, "batch_size": 8, "gradient_accumulation": 1, "max_steps": steps},
        "output": {"dir": str(directory)},
    }


def train_once(model: str, data: Path, device: str, dtype: str, steps: int) -> dict[str, Any]:
    """Train in a process of its own and return its losses and summary."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        config = Path(folder) / "run.yaml"
        config.write_text(json.dumps(settings(model, data, directory, dtype, steps)), encoding="utf-8")
        environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
        command = [sys.executable, "-m", "wishbone", "train", str(config)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            log = directory / "error.log"
            raise SystemExit(done.stdout + done.stderr + (log.read_text() if log.exists() else ""))
        summary = json.loads((directory / "summary.json").read_text())
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return {
            "losses": [line["loss"] for line in lines if "loss" in line],
            "heldout": summary["heldout_after"],
            "form": summary["form"],
            "pairs_per_second": summary["pairs_per_second"],
            "peak_memory_gib": summary["peak_memory_gib"],
            "environment": json.loads((directory / "environment.json").read_text()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = {}
    for name, (device, dtype) in RUNS.items():
        results[name] = train_once(args.model, args.data, device, dtype, args.steps)
        print(name, json.dumps({k: v for k, v in results[name].items() if k != "environment"}), flush=True)
    exact = results["cpu float32"]["losses"]
    report = {
        "benchmark": "precision",
        "command": f"python -m benchmarks.precision --data PAIRS.json --steps {args.steps}",
        "date": f"{datetime.now():%Y-%m-%d}",
        "results": results,
        "largest_loss_difference_to_cpu_float32": {
            name: max(abs(a - b) for a, b in zip(result["losses"], exact, strict=True))
            for name, result in results.items()
        },
    }
    print(json.dumps(report["largest_loss_difference_to_cpu_float32"], indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
