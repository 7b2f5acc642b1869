"""On a CUDA device: options that mean something there alone, beside TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training.preference_runs import chat_pairs, losses
from training.side_by_side import assert_on_step, learned, trained

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
