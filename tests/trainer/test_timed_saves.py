"""Saves by the clock: often enough that a kill costs little, seldom enough that saving does."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from accelerate import Accelerator
from transformers import TrainerControl, TrainerState, TrainingArguments

from wishbone.trainer import timed_saves
from wishbone.trainer.timed_saves import TimedSaves


def simulated(monkeypatch: pytest.MonkeyPatch, folder: Path, *, step: float, cost: float, hours: float) -> list[float]:
    """The moments in seconds at which a run of steps of `step` seconds saves, each time for `cost` seconds."""
    now = 0.0
    monkeypatch.setattr(timed_saves.time, "monotonic", lambda: now)
    arguments = TrainingArguments(str(folder), save_strategy="epoch", use_cpu=True, report_to="none")
    saves = TimedSaves(3.0, Accelerator(cpu=True))
    state, moments = TrainerState(max_steps=10**9, is_world_process_zero=True), []
    saves.on_train_begin(arguments, state, TrainerControl())
    while now < 3600 * hours:
        now += step
        control = TrainerControl()
        saves.on_step_end(arguments, state, control)
        if control.should_save:
            assert saves.rolling
            moments.append(now)
            now += cost
            saves.saved(cost)
    return moments


@pytest.mark.parametrize(("step", "cost"), [(0.3, 0.1), (20, 1), (200, 2), (1, 60)])
def test_a_kill_costs_minutes_and_saving_two_percent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: float, cost: float
) -> None:
    moments = simulated(monkeypatch, tmp_path, step=step, cost=cost, hours=6)
    gaps = [later - earlier - cost for earlier, later in pairwise(moments)]
    assert max(gaps) <= max(180, 50 * cost) + step
    assert cost * (len(moments) - 1) <= 0.02 * 6 * 3600, "what the first one costs is not known before"


def test_nothing_is_added_where_the_caller_saves_or_wants_no_checkpoints(tmp_path: Path) -> None:
    saves = TimedSaves(1e-9, Accelerator(cpu=True))
    state = TrainerState(max_steps=10, is_world_process_zero=True)
    asked = TrainerControl(should_save=True)
    saves.on_step_end(TrainingArguments(str(tmp_path), save_strategy="steps", use_cpu=True), state, asked)
    assert not saves.rolling
    for strategy in ("no", "best"):
        control = TrainerControl()
        options = {"metric_for_best_model": "loss", "eval_strategy": "steps"} if strategy == "best" else {}
        saves.on_step_end(
            TrainingArguments(str(tmp_path), save_strategy=strategy, use_cpu=True, **options), state, control
        )
        assert not control.should_save
