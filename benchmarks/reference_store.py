"""Three runs with other betas that share one reference store: pairs a second of each, and that losses stay the same.

    python -m benchmarks.reference_store --data PAIRS.json [--steps 6] [--out benchmarks/results/reference-store.json]

SmolLM2-135M-Instruct in float32 on the CPU, LoRA of rank 16 on all linear layers, max_length 1024, 4 pairs an optimizer
step, the same pairs in the same order. Three runs with the store off, then three with a new store, each run in a
process of its own, one after the other. The first run with the store fills it, the others read it. Speed is all pairs
over all of `trainer.train()`: hashing the weights, looking up and writing are within. Exit status 1 says that a later
run was not 1.3 times as fast as the first, or that a loss differed by more than 1e-6 from the run without a store.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

BETAS = (0.05, 0.1, 0.3)
PAIRS_A_STEP = 4
MAX_LENGTH = 1024
SPEEDUP = 1.3
LOSS_DIFFERENCE = 1e-6
LIBRARIES = ("torch", "transformers", "trl", "peft")


def work(model_dir: str, data: Path, steps: int, beta: float, store: str) -> None:
    """Train for `steps` steps and print the measurements."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wishbone import DPOConfig, DPOTrainer
    from wishbone.data.source import load_pairs

    pairs = load_pairs(data)
    count = PAIRS_A_STEP * steps
    if len(pairs) < count:
        raise SystemExit(f"{data} has {len(pairs)} pairs and {steps} steps take {count}; lower --steps")
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
            args=DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=PAIRS_A_STEP,
                gradient_accumulation_steps=1,
                max_steps=steps,
                learning_rate=5e-6,
                lr_scheduler_type="constant",
                beta=beta,
                max_length=MAX_LENGTH,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                bf16=False,
                use_cpu=True,
                seed=0,
                disable_tqdm=True,
                dataloader_pin_memory=False,
                reference_store=store,
            ),
            train_dataset=pairs.select(range(count)),
            processing_class=AutoTokenizer.from_pretrained(model_dir),
            peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    result = {
        "beta": beta,
        "store": "off" if store == "off" else "on",
        "pairs": trainer.trained_pairs,
        "seconds": round(seconds, 2),
        "pairs_per_second": round(trainer.trained_pairs / seconds, 4),
        **trainer.reference_counts(),
        "losses": [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        "threads": torch.get_num_threads(),
    }
    print("RESULT " + json.dumps(result), flush=True)


def measure(model_dir: str, data: Path, steps: int, beta: float, store: str) -> dict[str, Any]:
    """Run `work` in a process of its own."""
    asked = {"--model": model_dir, "--data": str(data), "--steps": str(steps), "--beta": str(beta), "--store": store}
    command = [
        sys.executable,
        "-m",
        "benchmarks.reference_store",
        "--worker",
        *(x for pair in asked.items() for x in pair),
    ]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"the run with beta {beta} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs, in any layout that is read")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--beta", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.model, args.data, args.steps, args.beta, args.store)
        return
    from wishbone.model.load import resolve_model

    model_dir = args.model or resolve_model("smollm2-135m-instruct")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "references.sqlite")
        without, sweep = (
            [measure(model_dir, args.data, args.steps, beta, place) for beta in BETAS] for place in ("off", store)
        )
    first, *later = (run["pairs_per_second"] for run in sweep)
    difference = max(
        abs(a - b)
        for run, plain in zip(sweep, without, strict=True)
        for a, b in zip(run["losses"], plain["losses"], strict=True)
    )
    report = {
        "benchmark": "reference store",
        "command": f"python -m benchmarks.reference_store --data PAIRS.json --steps {args.steps}",
        "date": f"{datetime.now():%Y-%m-%d}",
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "hardware": {"cpu": _cpu_name(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "without_store": without,
        "with_store": sweep,
        "later_runs_to_first": [round(speed / first, 2) for speed in later],
        "to_runs_without_store": [
            round(run["pairs_per_second"] / plain["pairs_per_second"], 2)
            for run, plain in zip(sweep, without, strict=True)
        ],
        "largest_loss_difference": difference,
    }
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if min(later) < SPEEDUP * first or difference > LOSS_DIFFERENCE:
        raise SystemExit(
            f"wanted: later runs at least {SPEEDUP} times as fast as the first, and losses within {LOSS_DIFFERENCE:g}"
        )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
