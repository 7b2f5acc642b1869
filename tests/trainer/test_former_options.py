"""Options that TRL and transformers once had: the error says what replaces them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer

from trainer.preference_runs import arguments, chat_pairs, model_for
from wishbone import DPOConfig, DPOTrainer
from wishbone.config.former_options import SUCCESSORS
from wishbone.config.load import parse_config
from wishbone.errors import RequestError


def test_all_of_them_are_named_at_once_with_their_successors(tmp_path: Path) -> None:
    former = {"group_by_length": True, "logging_dir": "logs", "rpo_alpha": 1.0, "reference_free": True, "betta": 0.1}
    with pytest.raises(RequestError) as refusal:
        DPOConfig(**arguments(tmp_path, **former))
    said = "\n".join(refusal.value.problems)
    assert len(refusal.value.problems) == len(former)
    for words in ("train_sampling_strategy='group_by_length'", "TENSORBOARD_LOGGING_DIR", "['sigmoid', 'sft']"):
        assert words in said
    assert "near: beta" in said


@pytest.mark.parametrize("name", sorted(SUCCESSORS.keys() - {option.name for option in fields(DPOConfig)}))
def test_no_option_ends_in_a_bare_type_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=f"no option '{name}' any more"):
        DPOConfig(**arguments(tmp_path, **{name: 1}))


def test_the_trainer_names_them_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"processing_class": tiny_tokenizer(), "rpo_alpha": 1.0, "learning_rate": 1e-5}
    with pytest.raises(RequestError) as refusal:
        DPOTrainer(model_for(tiny_tokenizer()), train_dataset=chat_pairs(4), **options)
    assert "['sigmoid', 'sft']" in str(refusal.value) and "an option of DPOConfig" in str(refusal.value)


def test_a_yaml_file_with_them_says_which_key_to_set() -> None:
    text = "model: {name: m}\ndata: {train: p.jsonl}\npreference: {rpo_alpha: 1.0}\ntraining: {group_by_length: true}\n"
    with pytest.raises(RequestError) as refusal:
        parse_config(text)
    assert "preference.loss: [sigmoid, sft]" in str(refusal.value)
    assert "rows are packed by length in any case" in str(refusal.value)


@pytest.mark.parametrize("steps", [4, 7])
def test_the_rate_rises_over_all_steps(tmp_path: Path, steps: int) -> None:
    config = DPOConfig(**arguments(tmp_path, max_steps=steps, warmup_ratio=1.0))
    assert config.get_warmup_steps(steps) == steps
    with pytest.raises(RequestError, match=r"warmup_ratio 1\.5"):
        DPOConfig(**arguments(tmp_path, warmup_ratio=1.5))
