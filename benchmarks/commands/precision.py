"""The same training in bfloat16 and float32, on CUDA and on the CPU: do the losses agree?

    python -m benchmarks precision --data PAIRS.json [--model smollm2-135m-instruct] [--steps 30] [--out FILE]

`wishbone train` trains LoRA on the same pairs, with the same seed and order: in bfloat16 on CUDA, in float32 on CUDA,
and in float32 on the CPU, each in a process of its own. The last fifth of the pairs is held out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.results import Row, this_call, write_json
from benchmarks.harness.wishbone_run import train

RUNS = {"cuda bfloat16": ("cuda", "bfloat16"), "cuda float32": ("cuda", "float32"), "cpu float32": ("cpu", "float32")}


def settings(model: str, data: Path, dtype: str, steps: int) -> dict[str, Any]:
    """Return a run's configuration."""
    return {
        "model": {"name": model, "dtype": dtype},
        "data": {"train": str(data), "eval_fraction": 0.2, "max_length": 1024, "invalid_rows": "drop"},
        "training": {"learning_rate": 5e-5, "batch_size": 8, "gradient_accumulation": 1, "max_steps": steps},
    }


def train_once(model: str, data: Path, device: str, dtype: str, steps: int) -> Row:
    """Train in a process of its own; return losses and summary."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "run.yaml"
        config.write_text(json.dumps(settings(model, data, dtype, steps)), encoding="utf-8")
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        run = train(config, Path(folder) / "run", **hidden)
    return {
        "losses": run.losses,
        "heldout": run.summary["heldout_after"],
        "form": run.summary["form"],
        "pairs_per_second": run.summary["pairs_per_second"],
        "peak_memory_gib": run.summary["peak_memory_gib"],
        "environment": run.environment,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", type=Path, required=True, help="pairs in any layout that Wishbone reads")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("this benchmark compares a CUDA device with the CPU, and there is no CUDA device")
    results = {}
    for name, (device, dtype) in RUNS.items():
        results[name] = train_once(options.model, options.data.resolve(), device, dtype, options.steps)
        print(name, json.dumps({k: v for k, v in results[name].items() if k != "environment"}), flush=True)
    exact = results["cpu float32"]["losses"]
    differences = {
        name: max(abs(a - b) for a, b in zip(result["losses"], exact, strict=True)) for name, result in results.items()
    }
    print(json.dumps(differences, indent=2))
    if options.out:
        report = {"results": results, "largest_loss_difference_to_cpu_float32": differences}
        write_json(options.out, {"benchmark": "precision", **this_call(options.commit), **report})
