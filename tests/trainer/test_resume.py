"""A run that was stopped and resumed is bitwise the run that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import tiny_tokenizer
from transformers import TrainerCallback

from trainer.preference_runs import adapter, arguments, chat_pairs, model_for
from wishbone import DPOConfig, DPOTrainer
from wishbone.errors import RequestError


class StopAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step:  # type: ignore[attr-defined]
            control.should_training_stop = True  # type: ignore[attr-defined]


def trainer(folder: Path, *callbacks: TrainerCallback, heldout: Dataset | None = None, **more: Any) -> DPOTrainer:
    tokenizer = tiny_tokenizer()
    options = more | {"save_strategy": "steps", "save_steps": 3, "max_steps": 8, "lr_scheduler_type": "linear"}
    return DPOTrainer(
        model_for(tokenizer),
        args=DPOConfig(**arguments(folder, **options)),
        train_dataset=chat_pairs(40),
        eval_dataset=heldout,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        callbacks=list(callbacks),
    )


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "parts", StopAt(4)).train()
    resumed = trainer(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert resumed.state.global_step == 8
    assert torch.equal(adapter(resumed), adapter(whole))


def test_held_out_pairs_may_come_and_go_where_nothing_depends_on_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, StopAt(3)).train()
    asked = str(tmp_path / "checkpoint-3")
    assert str(trainer(tmp_path, heldout=chat_pairs(4)).checkpoint_to_resume(asked)) == asked
    assert "measured on other held-out pairs" in caplog.text
    follows = {"lr_scheduler_type": "linear", "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    with pytest.raises(RequestError, match="held out was null"):
        trainer(tmp_path, heldout=chat_pairs(4), **follows).checkpoint_to_resume(asked)


def test_data_that_begins_anew_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, StopAt(3)).train()
    trainer(tmp_path, ignore_data_skip=True).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "ignore_data_skip begins the epoch anew" in caplog.text
