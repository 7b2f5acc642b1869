"""A trainer takes the names of models that the commands take."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
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


def test_a_reference_is_loaded_by_its_name(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    policy, reference = (tiny_model("llama", seed=seed, vocab_size=len(tokenizer)) for seed in (0, 1))
    reference.save_pretrained(tmp_path / "reference")
    first = []
    for given in (reference, str(tmp_path / "reference")):
        args = DPOConfig(**arguments(tmp_path / "out", max_steps=1, learning_rate=0.0))
        trainer = DPOTrainer(policy, given, args=args, train_dataset=chat_pairs(8), processing_class=tokenizer)
        trainer.train()
        first.append(trainer.state.log_history[0]["loss"])
    assert first[0] == first[1] != pytest.approx(0.6931472, abs=1e-4)


def test_a_directory_of_an_adapter_alone_is_refused_by_its_name(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RequestError, match=r"holds an adapter and no model: .* PeftModel.from_pretrained"):
        resolved(str(tmp_path))


def test_tokens_that_the_model_has_no_embedding_for_are_refused(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer) - 1)
    pairs = chat_pairs(4)
    used = tokenizer.decode([len(tokenizer) - 1])
    rows = [{**row, "chosen": [{"role": "assistant", "content": used}]} for row in pairs]
    args = DPOConfig(**arguments(tmp_path / "out"))
    with pytest.raises(RequestError, match=r"resize_token_embeddings"):
        DPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
