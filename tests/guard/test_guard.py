"""Whole runs of a tiny model: what a guard changes, and what it must not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from guard.guarded_runs import RATE, STEPS, guarded
from safetensors.torch import load_file
from trainer.preference_runs import adapter
from transformers import TrainerCallback

from wishbone.guard.best_weights import FILE as BEST
from wishbone.trainer.trainer import DPOTrainer


class StopAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


class WeightsAt(TrainerCallback):  # type: ignore[misc]
    """Keeps the adapter after each step."""

    def __init__(self) -> None:
        self.trainer: DPOTrainer | None = None
        self.weights: dict[int, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        self.weights[state.global_step] = adapter(self.trainer).clone()


class Rates(TrainerCallback):  # type: ignore[misc]
    """Keeps the learning rate of each step."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.used.append(optimizer.param_groups[0]["lr"])


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "guard.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"guard_steps": None}])
def test_a_guard_that_reports_changes_no_weight(tmp_path: Path, options: dict[str, Any]) -> None:
    dropout = {"disable_dropout": False, "max_steps": 5, **options}
    watched, plain = guarded(tmp_path / "on", **dropout), guarded(tmp_path / "off", guard="off", **dropout)
    for trainer in (watched, plain):
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        trainer.train()
    assert torch.equal(adapter(watched), adapter(plain))
    assert watched.guard is not None
    assert plain.guard is None
    assert len(rows(tmp_path / "on", "measurement")) >= 2


@pytest.mark.slow
def test_a_run_that_goes_wrong_stops_with_the_best_weights(tmp_path: Path) -> None:
    weights = WeightsAt()
    trainer = guarded(tmp_path, weights, guard="stop")
    weights.trainer = trainer
    trainer.train()
    assert trainer.guard is not None
    summary = trainer.guard.summary()
    stopped, restored = summary["stopped_at_step"], summary["restored_step"]
    assert trainer.state.global_step == stopped < STEPS
    assert torch.equal(adapter(trainer), weights.weights[restored])
    problem = next(alarm for alarm in rows(tmp_path, "alarm") if alarm["severity"] == "problem")
    assert restored < problem["since"] < problem["step"] == stopped
    assert "training.learning_rate 5e-6 instead of 0.03" in problem["advice"]
    clean = {row["step"]: row["pair_loss"] for row in rows(tmp_path, "measurement") if not row["signs"]}
    assert clean[restored] == min(clean.values())


@pytest.mark.slow
def test_a_run_that_was_stopped_and_killed_before_its_end_ends_as_it_would_have(tmp_path: Path) -> None:
    options = {"guard": "stop", "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    whole = guarded(tmp_path, **options)
    whole.train()
    with (tmp_path / "guard.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "measurement", "st')  # as a crash of the machine may leave it
    again = guarded(tmp_path, **options)
    again.train(resume_from_checkpoint=True)
    assert [row["step"] for row in rows(tmp_path, "measurement")][-1] == whole.state.global_step
    assert again.guard is not None and whole.guard is not None
    assert again.state.global_step == whole.state.global_step < STEPS
    assert again.guard.summary()["restored_step"] == whole.guard.summary()["restored_step"] is not None
    assert torch.equal(adapter(again), adapter(whole))
    again.guard.discard()
    assert not (tmp_path / BEST).exists()


@pytest.mark.slow
def test_a_run_that_is_ended_early_keeps_its_best_weights_for_the_resumed_one(tmp_path: Path) -> None:
    guarded(tmp_path, StopAt(2), guard="stop", save_strategy="steps", save_steps=1).train()
    assert (tmp_path / BEST).exists()
    assert not [row for row in rows(tmp_path, "note") if "Too few" in row["text"]]


@pytest.mark.slow
def test_a_full_model_goes_back_to_the_newest_checkpoint_before_the_trouble(tmp_path: Path) -> None:
    options = {"guard": "stop", "save_strategy": "steps", "save_steps": 1, "learning_rate": 5e-2}
    trainer = guarded(tmp_path, full=True, precompute_ref_log_probs=True, **options)
    trainer.train()
    assert trainer.guard is not None
    summary = trainer.guard.summary()
    assert summary["stopped_at_step"] is not None
    saved = load_file(tmp_path / f"checkpoint-{summary['restored_step']}" / "model.safetensors")
    for name, weight in trainer.model.state_dict().items():
        if name in saved:
            assert torch.equal(weight, saved[name]), name


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_is_slowed_halves_its_rate_and_resumes_bitwise(tmp_path: Path) -> None:
    options = {"guard": "slow", "save_strategy": "steps", "save_steps": 1}
    rates = Rates()
    whole = guarded(tmp_path / "whole", rates, **options)
    whole.train()
    assert whole.guard is not None
    alarmed = [row["step"] for row in rows(tmp_path / "whole", "alarm") if row["severity"] == "problem"]
    first = alarmed[0]
    assert rates.used[: first + 1] == [RATE] * first + [RATE / 2]
    assert whole.guard.summary()["rate_factor"] == 0.5 ** len(set(alarmed))
    for at in (first - 1, first):  # between a sign and its alarm, and right after the alarm
        folder = tmp_path / f"parts-{at}"
        guarded(folder, StopAt(at + 1), **options).train()
        resumed = guarded(folder, **options)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{at}"))
        assert torch.equal(adapter(resumed), adapter(whole))
        judged = [{**row, "seconds": 0} for row in rows(folder, "measurement")]
        assert judged == [{**row, "seconds": 0} for row in rows(tmp_path / "whole", "measurement")]


@pytest.mark.slow
def test_evaluations_are_measurements(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 3, "max_steps": 9}
    trainer = guarded(tmp_path, guard_steps=1000, **options)
    passes = []
    assert trainer.guard is not None
    measure = trainer.guard._measuring.sample.measure
    trainer.guard._measuring.sample.measure = lambda *given: passes.append(1) or measure(*given)  # type: ignore[method-assign]
    trainer.train()
    assert [row["step"] for row in rows(tmp_path, "measurement")] == [0, 3, 6, 9]
    assert len(passes) == 1  # before training, where nothing had been evaluated


@pytest.mark.slow
def test_too_few_measurements_are_said(tmp_path: Path) -> None:
    trainer = guarded(tmp_path, guard_steps=None, max_steps=4)
    trainer.train()
    assert trainer.guard is not None
    assert not trainer.guard.summary()["enough"]
    assert any("Too few steps to judge" in row["text"] for row in rows(tmp_path, "note"))
