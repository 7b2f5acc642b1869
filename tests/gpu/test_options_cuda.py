"""On a CUDA device: options that mean something there alone, beside TRL."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer.preference_runs import chat_pairs, losses
from trainer.side_by_side import assert_on_step, learned, trained, trainer
from transformers import TrainerCallback, TrainerState

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ON_GPU = {"use_cpu": False, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_offloading": True},
        {"gradient_checkpointing": True, "activation_offloading": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"fp16": True},
        {"bf16": True},
        {"bf16_full_eval": True, "eval_strategy": "steps", "eval_steps": 3},
        {"torch_empty_cache_steps": 1, "auto_find_batch_size": True, "dataloader_pin_memory": True},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_options(tmp_path: Path, options: dict[str, Any]) -> None:
    further = {"further": lambda: {"eval_dataset": chat_pairs(4, seed=1)}} if "eval_steps" in options else {}
    theirs, ours = trained(tmp_path, {**ON_GPU, **options}, **further)
    assert_on_step(ours)
    assert ours.preference_step is not None and ours.preference_step.policy.row_multiple == 128
    assert next(ours.model.parameters()).is_cuda
    half = "fp16" in options or "bf16" in options
    assert losses(ours) == pytest.approx(losses(theirs), rel=5e-2 if half else 5e-3)
    assert (learned(ours) - learned(theirs)).norm() <= (0.2 if half else 2e-2) * learned(theirs).norm()


class Waits(TrainerCallback):
    """Lists what makes the host wait for the GPU from the fourth step on, logs excepted."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._caught = warnings.catch_warnings(record=True)
        self._list: list[Any] | None = None

    def on_step_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step >= 3:
            self._caught = warnings.catch_warnings(record=True)
            self._list = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step > 3:
            torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(None, None, None)
            seen = [warning for warning in self._list or [] if "called a synchronizing" in str(warning.message)]
            self.found += [f"{warning.filename}:{warning.lineno}" for warning in seen]


@pytest.mark.parametrize("options", [{}, {"bf16": True, "gradient_accumulation_steps": 2}, {"cuda_graphs": "on"}])
def test_no_step_waits_for_the_gpu(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {**ON_GPU, "logging_steps": 100, "max_steps": 8, **options}
    ours = trainer("ours", tmp_path, settings, data=lambda: chat_pairs(32))
    waits = Waits()
    ours.add_callback(waits)
    ours.train()
    assert_on_step(ours)
    assert not waits.found
