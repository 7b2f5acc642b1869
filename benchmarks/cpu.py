"""Wishbone beside TRL on a CPU: pairs a second and peak memory of DPO with LoRA on real pairs.

    python -m benchmarks.cpu --data PAIRS.json [--trl 1.9.2] [--steps 4] [--out benchmarks/results/cpu.json]

SmolLM2-135M-Instruct in float32, LoRA of rank 16 on all linear layers, max_length 1024, 4 pairs an optimizer step, the
same pairs in the same order. Each system runs in a process of its own, one after the other, and prints one JSON line.
TRL lives in an environment of its own (default `.venv-trl-VERSION`, made on first use), because its versions need other
libraries. Resident memory is the process's peak; the first step warms up and is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import venv
from datetime import datetime
from pathlib import Path
from typing import Any

PAIRS_A_STEP = 4
MAX_LENGTH = 1024
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def pairs(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a sharegpt ranking file as chat messages."""

    def messages(turns: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns]

    rows = json.loads(path.read_text(encoding="utf-8"))[:count]
    return [
        {
            "prompt": messages(row["conversations"]),
            "chosen": messages([row["chosen"]]),
            "rejected": messages([row["rejected"]]),
        }
        for row in rows
    ]


def work(system: str, model_dir: str, data: Path, steps: int) -> None:
    """Train for `steps` timed steps after one that is not, and print the measurements."""
    if system == "wishbone":
        from wishbone import DPOConfig, DPOTrainer
    else:
        from trl import DPOConfig, DPOTrainer
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    step_ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            step_ends.append(time.perf_counter())

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir="/tmp/wishbone-benchmark",
            per_device_train_batch_size=PAIRS_A_STEP,
            gradient_accumulation_steps=1,
            max_steps=steps + 1,
            learning_rate=5e-6,
            lr_scheduler_type="constant",
            beta=0.1,
            max_length=MAX_LENGTH,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            seed=0,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(pairs(data, PAIRS_A_STEP * (steps + 1))),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    seconds = step_ends[-1] - step_ends[0]
    result = {
        "system": system,
        "pairs_per_second": round(PAIRS_A_STEP * steps / seconds, 4),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "losses": [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print("RESULT " + json.dumps(result), flush=True)


def peer_python(version: str) -> str:
    """The interpreter of an environment with TRL of that version, made if it is not there."""
    directory = Path(f".venv-trl-{version}")
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
        torch_version = subprocess.check_output(
            [sys.executable, "-c", "import torch; print(torch.__version__.split('+')[0])"], text=True
        ).strip()
        install = [str(python), "-m", "pip", "install", "-q", f"torch=={torch_version}", f"trl=={version}", "peft"]
        subprocess.run(install, check=True)
    return str(python)


def measure(python: str, system: str, model_dir: str, data: Path, steps: int) -> dict[str, Any]:
    """Run one system in a process of its own."""
    command = [python, __file__, "--worker", system, "--model", model_dir, "--data", str(data), "--steps", str(steps)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "CI": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{system} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trl", default="1.9.2", help="version of TRL to measure against")
    parser.add_argument("--peer-python", help="interpreter that has this TRL, instead of making an environment")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=["wishbone", "trl"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.model, args.data, args.steps)
        return
    from wishbone.model.load import resolve_model

    model_dir = resolve_model("smollm2-135m-instruct")
    ours = measure(sys.executable, "wishbone", model_dir, args.data, args.steps)
    theirs = measure(args.peer_python or peer_python(args.trl), "trl", model_dir, args.data, args.steps)
    theirs["system"] = f"trl {args.trl}"
    report = {
        "benchmark": "cpu",
        "command": "python -m benchmarks.cpu --data PAIRS.json --steps " + str(args.steps),
        "date": f"{datetime.now():%Y-%m-%d}",
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "hardware": {"cpu": _cpu_name(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        "results": [ours, theirs],
        "speed_ratio": round(ours["pairs_per_second"] / theirs["pairs_per_second"], 2),
        "memory_ratio": round(ours["peak_gib"] / theirs["peak_gib"], 3),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
    }
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
