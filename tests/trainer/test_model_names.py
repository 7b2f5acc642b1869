"""A trainer takes the names of models that the commands take."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from trainer.preference_runs import arguments, chat_pairs
from wishbone import DPOConfig, DPOTrainer
from wishbone.errors import RequestError
from wishbone.trainer.request import resolved


def test_a_directory_trains_by_its_name(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    args = DPOConfig(**arguments(tmp_path / "out", max_steps=1))
    trainer = DPOTrainer(model=str(tmp_path / "model"), args=args, train_dataset=chat_pairs(4))
    assert trainer.train().global_step == 1
    assert trainer.preference_step is not None


def test_the_built_in_model_is_a_directory(smollm2: object):
    directory = resolved("smollm2-135m-instruct")
    assert (Path(directory) / "config.json").is_file()


def test_other_names_stay_and_paths_that_are_not_there_are_refused():
    assert resolved("org/model") == "org/model" and resolved(None) is None
    with pytest.raises(RequestError, match=r"'\./nothing' does not exist"):
        resolved("./nothing")
