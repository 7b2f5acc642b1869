"""A run directory like those of real runs: curves that fall, scatter and level off, written as training writes them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wishbone.config import dump_config, parse_config

WriteRun = Callable[..., Path]


def metrics(step: int, steps: int, noise: random.Random, *, collapse: bool) -> dict[str, float]:
    """One line of training metrics: DPO with beta 0.1, batches of 8 pairs."""
    done = 1 - math.exp(-3 * step / steps)
    margin = 1.6 * done + noise.gauss(0, 0.12) * (0.2 + done)
    chosen = (-0.9 if collapse else 0.35) * done + noise.gauss(0, 0.05) * (0.2 + done)
    accuracy = sum(noise.random() < 0.5 + 0.42 * done for _ in range(8)) / 8
    return {
        "loss": math.log1p(math.exp(-margin)) + abs(noise.gauss(0, 0.02)),
        "rewards/chosen": chosen,
        "rewards/rejected": chosen - margin,
        "rewards/margins": margin,
        "rewards/accuracies": accuracy,
        "logps/chosen": -62.4 + 10 * chosen + noise.gauss(0, 2),
        "logps/rejected": -181.0 + 10 * (chosen - margin) + noise.gauss(0, 6),
        "entropy": 1.62 - 0.25 * done + noise.gauss(0, 0.03),
        "grad_norm": 2.1 * math.exp(-2 * step / steps) + abs(noise.gauss(0, 0.3)),
        "learning_rate": 1e-5 * min(step / (0.1 * steps), (steps - step) / (0.9 * steps)),
        "num_tokens": 1800.0 * step,
    }


def heldout(step: int, steps: int, *, collapse: bool) -> dict[str, float]:
    calm = random.Random(step)
    values = metrics(step, steps, calm, collapse=collapse)
    done = 1 - math.exp(-3 * step / steps)
    margin = 1.35 * done
    values |= {
        "loss": math.log1p(math.exp(-margin)),
        "rewards/margins": margin,
        "rewards/chosen": (-0.85 if collapse else 0.3) * done,
        "rewards/accuracies": 0.5 + 0.38 * done if step else 0.0,
    }
    values["rewards/rejected"] = values["rewards/chosen"] - margin
    return {name: value for name, value in values.items() if name not in {"grad_norm", "learning_rate", "num_tokens"}}


def write_fake_run(
    run: Path, *, steps: int = 120, every: int = 20, collapse: bool = False, finished: bool = True, answers: bool = True
) -> Path:
    """Write a run of `steps` steps with an evaluation every `every` steps and return its directory."""
    run.mkdir(parents=True)
    config = parse_config(
        "model: {name: smollm2-135m-instruct}\n"
        "data: {train: train.jsonl, eval: heldout.jsonl}\n"
        "training: {learning_rate: 1.0e-5, eval_steps: 20}\n"
    )
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    environment = {
        "command": ["wishbone", "train", "run.yaml"],
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "libraries": {"wishbone-dpo": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"},
        "device": "cuda",
        "device_name": "NVIDIA H200",
        "cpu_count": 16,
    }
    (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    noise = random.Random(7)
    logged: list[dict[str, Any]] = []
    for step in range(steps + 1):
        place = {"step": step, "epoch": step / steps, "seconds": 0.7 * step}
        if step:
            logged.append(place | metrics(step, steps, noise, collapse=collapse))
        if step % every == 0:
            values = heldout(step, steps, collapse=collapse)
            logged.append(place | {f"eval_{name}": value for name, value in values.items()})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged), encoding="utf-8")
    summary: dict[str, Any] = {
        "status": "running",
        "started": "2026-11-21T10:00:00+00:00",
        "model": "smollm2-135m-instruct",
        "pairs": {"train": 960, "heldout": 48},
        "dropped_rows": 3,
        "form": "shared_prefix",
        "form_reason": None,
        "heldout_before": heldout(0, steps, collapse=collapse),
    }
    if finished:
        summary |= {
            "status": "done",
            "finished": "2026-11-21T10:01:31+00:00",
            "heldout_after": heldout(steps, steps, collapse=collapse),
            "steps": steps,
            "train_seconds": 84.2,
            "pairs_per_second": 11.4,
            "tokens_per_second": 2570.0,
            "peak_memory_gib": 3.41,
            "device": "cuda",
        }
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    if answers:
        (run / "answers.json").write_text(json.dumps(ANSWERS), encoding="utf-8")
    return run


ANSWERS = [
    {
        "prompt": [{"role": "user", "content": "How do I restart a frozen Windows computer safely?"}],
        "before": "Restarting a frozen Windows computer safely requires a few steps to ensure that your computer is "
        "protected from damage.\n\n1. **Check the power supply**: Make sure the power supply is properly plugged in."
        "\n2. **Restart the computer**: Press the power button to turn it off.",
        "after": "Hold the power button for ten seconds until the computer turns off, then switch it on again.",
        "chosen": "Hold the power button for about ten seconds until it turns off, then switch it on.",
    },
    {
        "prompt": [
            {"role": "system", "content": "Answer in Arabic."},
            {"role": "user", "content": "How many legs does a spider have?"},
        ],
        "before": "للعنكبوت ثمانية أرجل.",
        "after": "",
        "chosen": None,
    },
]
