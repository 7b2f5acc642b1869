"""Fifty steps: losses and gradient norms stay TRL's, however a step's pairs are divided into batches.

The idea is that of TRL's invariant tests, with their tolerances: one batch of 8 pairs a step, 4 batches of 2 and 8 of 1
give the same trajectory, step by step and on the average. Here TRL, on the same model and data, is the reference for
all. Losses that couple the pairs of a batch, or average over its tokens, depend on how a step is divided; they are
compared in one division.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from trainer.preference_runs import arguments, chat_pairs
from trainer.side_by_side import lora
from wishbone import DPOConfig, DPOTrainer

STEPS = 50
LARGEST_DIFFERENCE, LARGEST_DRIFT = 5e-3, 1e-3
WHOLE = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
PARTED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
DIVIDED = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}


def trajectory(
    trainer_class: Any, config_class: Any, folder: Path, *, full: bool, **options: Any
) -> dict[str, list[float]]:
    """Loss and gradient norm of every step of a run over 80 ragged pairs."""
    tokenizer = tiny_tokenizer()

    def model() -> PreTrainedModel:
        return tiny_model("llama", vocab_size=len(tokenizer), num_hidden_layers=1)

    settings = {"max_steps": STEPS, "learning_rate": 1e-3 if full else 5e-3, **options}
    trainer = trainer_class(
        model(),
        model() if full else None,
        args=config_class(**arguments(folder, **settings)),
        train_dataset=chat_pairs(80),
        processing_class=tokenizer,
        peft_config=None if full else lora(),
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {name: [float(entry[name]) for entry in steps] for name in ("loss", "grad_norm")}


@pytest.mark.long
@pytest.mark.parametrize(
    ("full", "options", "divisions"),
    [
        (False, {}, [WHOLE, DIVIDED]),
        (True, {"loss_type": "apo_zero"}, [PARTED]),
        (False, {"loss_type": "ipo", "max_length": 24, "truncation_mode": "keep_end"}, [DIVIDED]),
        (False, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "max_length": 30}, [WHOLE]),
        (True, {"loss_type": "aot", "beta": 0.3}, [WHOLE]),
    ],
    ids=["lora-sigmoid", "full-apo_zero", "lora-ipo-keep_end", "lora-sigmoid+sft-keep_start", "full-aot"],
)
def test_fifty_steps_are_trls(
    tmp_path: Path, full: bool, options: dict[str, Any], divisions: list[dict[str, int]]
) -> None:
    theirs = trajectory(trl.DPOTrainer, trl.DPOConfig, tmp_path, full=full, **options, **WHOLE)
    for division in divisions:
        ours = trajectory(DPOTrainer, DPOConfig, tmp_path, full=full, token_budget=100, **options, **division)
        for name, expected in theirs.items():
            assert len(ours[name]) == STEPS == len(expected)
            differences = [value - other for value, other in zip(ours[name], expected, strict=True)]
            assert max(map(abs, differences)) <= LARGEST_DIFFERENCE, name
            assert abs(sum(differences)) / STEPS <= LARGEST_DRIFT, name
            assert max(expected) - min(expected) > 20 * LARGEST_DIFFERENCE, f"{name} hardly moves: nothing is compared"
