"""Full fine-tuning of float32 weights with bfloat16 products: TRL has accelerate wrap the reference model's forward."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import trl
from tiny import tiny_tokenizer

from trainer.preference_runs import arguments, chat_pairs, losses, model_for
from wishbone import DPOConfig, DPOTrainer


def trained(trainer_class: Any, config_class: Any, folder: Path) -> list[float]:
    """Losses of three steps with a separate reference model."""
    tokenizer = tiny_tokenizer()
    trainer = trainer_class(
        model_for(tokenizer),
        model_for(tokenizer),
        args=config_class(**arguments(folder, bf16=True, learning_rate=1e-3)),
        train_dataset=chat_pairs(40),
        processing_class=tokenizer,
    )
    trainer.train()
    return losses(trainer)


def test_the_reference_shares_prefixes_as_the_policy_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = trained(trl.DPOTrainer, trl.DPOConfig, tmp_path)
    with caplog.at_level(logging.WARNING, logger="wishbone"):
        ours = trained(DPOTrainer, DPOConfig, tmp_path)
    assert "plain sequences" not in caplog.text
    assert ours == pytest.approx(theirs, abs=0.02)  # bfloat16, in another order
