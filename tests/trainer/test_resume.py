"""A run that was stopped and resumed is bitwise the run that was not."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from tiny import tiny_tokenizer
from transformers import TrainerCallback

from trainer.preference_runs import adapter, arguments, chat_pairs, model_for
from wishbone import DPOConfig, DPOTrainer


class StopAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step:  # type: ignore[attr-defined]
            control.should_training_stop = True  # type: ignore[attr-defined]


def trainer(folder: Path, *callbacks: TrainerCallback) -> DPOTrainer:
    tokenizer = tiny_tokenizer()
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8, "lr_scheduler_type": "linear"}
    return DPOTrainer(
        model_for(tokenizer),
        args=DPOConfig(**arguments(folder, **options)),
        train_dataset=chat_pairs(40),
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
