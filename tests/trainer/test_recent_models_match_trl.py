"""Small real trainings of a mixture, hybrids and a vision model: losses and weights of 30 steps are TRL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from trainer.preference_runs import losses
from trainer.side_by_side import assert_on_step, assert_same, lora, trained
from trainer.test_images import makers

LAYERS = r".*\.(q_proj|v_proj|o_proj|in_proj|out_proj|in_proj_qkv)"


@pytest.mark.long
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_text", "lfm2", "qwen3_vl"])
def test_thirty_steps_are_those_of_trl(family: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 30, "learning_rate": 1e-3, "logging_steps": 1, "max_length": 256}
    if family == "qwen3_moe":
        options["router_aux_loss_coef"] = 0.1
    text = {"model": lambda: tiny_model(family, vocab_size=512), "peft": lambda: lora(target_modules=LAYERS)}
    theirs, ours = trained(tmp_path, options, **(makers(family) if family == "qwen3_vl" else text))
    assert_on_step(ours)
    assert len(losses(ours)) == 30 and losses(ours)[-1] < losses(ours)[0] - 0.05
    assert_same(theirs, ours, rel=1e-5, weights=1e-5)
