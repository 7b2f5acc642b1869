"""A run that was stopped and resumed is bitwise the run that was not."""

from __future__ import annotations

import sys
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
from wishbone.config.trackers import is_installed
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


def test_what_begins_anew_is_said_and_what_names_no_checkpoint_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, StopAt(3)).train()
    for neither in (1, ""):
        with pytest.raises(RequestError, match="give True for the newest, or the path of one"):
            trainer(tmp_path).train(resume_from_checkpoint=neither)
    with pytest.raises(RequestError, match="it holds checkpoint-3"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path))
    trainer(tmp_path, ignore_data_skip=True).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "ignore_data_skip begins the epoch anew" in caplog.text


def test_a_folder_called_as_a_tracker_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside" / "trackio").mkdir(parents=True)
    monkeypatch.setattr("sys.path", [str(tmp_path / "beside"), *sys.path])
    if is_installed("trackio"):
        pytest.skip("the package is installed, and Python prefers it")
    trainer(tmp_path, StopAt(3)).train()
    assert (tmp_path / "checkpoint-3").is_dir() and "it writes no model card" in caplog.text
    with pytest.raises(RequestError, match="'trackio', and its package is not installed"):
        trainer(tmp_path, report_to="trackio")


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"gradient_accumulation_steps": 5}, "gradient_accumulation_steps, 5,"),
        ({"per_device_train_batch_size": 7, "gradient_accumulation_steps": 2}, "gradient_accumulation_steps, 2,"),
    ],
)
def test_a_stream_that_never_completes_a_step_is_refused(tmp_path: Path, options: dict[str, Any], asked: str) -> None:
    """transformers and TRL read it again and again, without a step, for ever."""
    run = DPOTrainer(
        model_for(tiny_tokenizer()),
        args=DPOConfig(**arguments(tmp_path, **{"max_steps": 3, **options})),
        train_dataset=chat_pairs(7).to_iterable_dataset(),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    with pytest.raises(RequestError, match=f"fewer batches than {asked} .* or give more pairs"):
        run.train()
    assert run.state.global_step == 0
