"""Signals to a script with the drop-in trainer: a checkpoint first, then what the signal would have done at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from trainer.preference_runs import adapter
from trainer.test_checkpoints import trainer
from wishbone.config.run_directory import checkpoints_in
from wishbone.trainer.checkpoint_files import damage


class Sends(TrainerCallback):  # type: ignore[misc]
    """Sends signals to this process while a step is under way."""

    def __init__(self, step: int, *signals: signal.Signals) -> None:
        self.step, self.signals = step, signals

    def on_step_begin(self, args: object, state: Any, control: Any, **_: object) -> None:
        if state.global_step == self.step - 1:
            for number in self.signals:
                os.kill(os.getpid(), number)


def test_an_interrupt_saves_the_step_under_way_and_the_run_continues_bitwise(tmp_path: Path) -> None:
    stopped = trainer(tmp_path / "stopped", Sends(3, signal.SIGINT), save_steps=100)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    (checkpoint,) = checkpoints_in(tmp_path / "stopped")
    assert checkpoint.name == "checkpoint-3" and damage(checkpoint) is None
    continued = trainer(tmp_path / "stopped", save_steps=100)
    continued.train(resume_from_checkpoint=True)
    whole = trainer(tmp_path / "whole", save_steps=100)
    whole.train()
    assert adapter(continued).equal(adapter(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_the_process_after_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        try:
            trainer(tmp_path, Sends(2, number), save_steps=100).train()
        finally:
            os._exit(77)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -number
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2"]


def test_a_handler_of_the_script_stays_and_without_saving_nothing_is_caught(tmp_path: Path) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        trainer(tmp_path / "a", Sends(2, signal.SIGTERM), max_steps=3).train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "b", Sends(2, signal.SIGINT), save_strategy="no").train()
    assert not checkpoints_in(tmp_path / "b")
