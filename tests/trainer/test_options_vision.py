"""Vision-language models: TRL's path with images; Wishbone's step with text, processor or tokenizer given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from trainer.preference_runs import chat_pairs, losses
from trainer.side_by_side import assert_on_step, assert_same, trained, trainer

pytest.importorskip("PIL")

from tiny_vision import image_pairs, tiny_vision_model, tiny_vision_processor


def makers(images: bool, processor: bool = True) -> dict[str, Any]:
    def given() -> Any:
        return tiny_vision_processor() if processor else tiny_vision_processor().tokenizer

    return {
        "model": lambda: tiny_vision_model(tiny_vision_processor()),
        "data": lambda: image_pairs(12) if images else chat_pairs(12),
        "peft": lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        "further": lambda: {
            "processing_class": given(),
            "eval_dataset": image_pairs(4, seed=1) if images else chat_pairs(4, seed=1),
        },
    }


def test_images(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 3}
    theirs, ours = trained(tmp_path, options, **makers(images=True))
    assert_on_step(ours)
    assert_same(theirs, ours)
    assert "eval_loss" in ours.state.log_history[-2]


def test_text_with_a_processor_is_trained_by_the_step(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 3, "max_length": 40}
    theirs, ours = trained(tmp_path, options, **makers(images=False))
    assert_on_step(ours)
    assert_same(theirs, ours)
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert [list(ids) for ids in ours.train_dataset[name]] == [list(ids) for ids in theirs.train_dataset[name]]
    assert "eval_loss" in ours.state.log_history[-2]


def test_text_with_the_tokenizer_alone_is_trained_by_the_step(tmp_path: Path) -> None:
    theirs, ours = trained(tmp_path, **makers(images=False, processor=False))
    assert_on_step(ours)
    assert_same(theirs, ours)


def test_a_loss_that_trl_lacks(tmp_path: Path) -> None:
    ours = trainer("ours", tmp_path, {"loss_type": "simpo"}, **makers(images=True))
    ours.train()
    assert_on_step(ours)
    assert len(losses(ours)) == 3


def test_images_for_a_model_of_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not seem to be a vision-language model"):
        trainer("ours", tmp_path, data=lambda: image_pairs(4))
