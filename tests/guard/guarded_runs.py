"""Tiny runs with a guard; at a rate of 3e-2 with a constant schedule they leave their reference within 8 steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig
from tiny import tiny_tokenizer
from trainer.preference_runs import arguments, chat_pairs, model_for
from transformers import TrainerCallback

from wishbone import DPOConfig, DPOTrainer

STEPS, RATE = 12, 3e-2


def guarded(folder: Path, *callbacks: TrainerCallback, full: bool = False, **options: Any) -> DPOTrainer:
    """A trainer over 40 pairs with 12 held out, and a guard that measures every second step."""
    tokenizer = tiny_tokenizer()
    options = {
        "max_steps": STEPS,
        "guard": "report",
        "guard_steps": 2,
        "learning_rate": RATE,
        "reference_store": "off",
        **options,
    }
    return DPOTrainer(
        model_for(tokenizer),
        args=DPOConfig(**arguments(folder, **options)),
        train_dataset=chat_pairs(40),
        eval_dataset=chat_pairs(12, seed=1),
        processing_class=tokenizer,
        peft_config=None if full else LoraConfig(r=4, target_modules="all-linear"),
        callbacks=list(callbacks),
    )
