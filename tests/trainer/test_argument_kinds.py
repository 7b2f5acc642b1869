"""Arguments of another kind than `DPOTrainer` takes are refused with what to give instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from peft import LoraConfig, PeftMixedModel
from tiny import tiny_tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel, TrainerCallback

from trainer.preference_runs import arguments, chat_pairs, model_for
from wishbone import DPOConfig, DPOTrainer
from wishbone.errors import RequestError

LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


def trainer(tmp_path: Path, model: Any = None, **options: Any) -> DPOTrainer:
    tokenizer = tiny_tokenizer()
    given = {"train_dataset": chat_pairs(4), "processing_class": tokenizer} | options
    return DPOTrainer(model_for(tokenizer) if model is None else model, args=DPOConfig(**arguments(tmp_path)), **given)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (nn.DataParallel, "wrapped in DataParallel; give model.module"),
        (type, "give a model: LlamaForCausalLM.from_pretrained"),
        (lambda model: nn.Linear(2, 2), "is a Linear"),
        (lambda model: PeftMixedModel(model, LORA), "is a PeftMixedModel"),
        (lambda model: AutoModelForSequenceClassification.from_config(model.config), "which writes no text"),
    ],
    ids=["wrapped", "class", "module", "mixed", "no head"],
)
def test_models_of_another_kind(tmp_path: Path, wrong: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        trainer(tmp_path, wrong(model_for(tiny_tokenizer())))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ref_model": False}, "ref_model is a bool"),
        ({"train_dataset": [{"prompt": "a", "chosen": "b", "rejected": "c"}]}, "load_pairs"),
        ({"train_dataset": DatasetDict(test=chat_pairs(2))}, "one of its splits: 'test'"),
        ({"eval_dataset": {"one": "pairs.jsonl"}}, "eval_dataset is a str"),
        ({"callbacks": TrainerCallback()}, "give a list of callbacks"),
        ({"callbacks": [print]}, "its items are TrainerCallback objects"),
        ({"optimizers": torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)}, "give \\(optimizer, scheduler\\)"),
    ],
)
def test_other_arguments_of_another_kind(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        trainer(tmp_path, **options)


def test_an_optimizer_of_other_parameters_would_learn_nothing(tmp_path: Path) -> None:
    model = model_for(tiny_tokenizer())
    before_the_adapter = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(RequestError, match="has none of the parameters that are trained"):
        trainer(tmp_path, model, peft_config=LORA, optimizers=(before_the_adapter, None))


def test_parameters_that_an_optimizer_leaves_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = model_for(tiny_tokenizer())
    count = len(list(model.parameters()))
    trainer(tmp_path, model, optimizers=(torch.optim.SGD([next(model.parameters())], 0.1), None))
    assert f"{count - 1} of {count} trained tensors are not in the optimizer" in caplog.text


def test_a_compiled_model_trains_as_the_model_within(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = model_for(tiny_tokenizer())
    assert trainer(tmp_path, torch.compile(model)).model is model
    assert "model is compiled" in caplog.text


def test_tokens_beyond_the_references_embedding_are_refused(tmp_path: Path) -> None:
    reference = model_for(tiny_tokenizer())
    reference.resize_token_embeddings(4)
    with pytest.raises(RequestError, match="ref_model has embeddings for tokens 0 to 3"):
        trainer(tmp_path, ref_model=reference)


def test_sequences_beyond_a_table_of_positions_are_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    size = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": len(tokenizer), "n_positions": 16}
    options = arguments(tmp_path, max_length=40)
    with pytest.raises(RequestError, match="the model's table has 16 positions: set max_length=16"):
        DPOTrainer(
            GPT2LMHeadModel(GPT2Config(**size)),
            args=DPOConfig(**options),
            train_dataset=chat_pairs(4),
            processing_class=tokenizer,
        )
