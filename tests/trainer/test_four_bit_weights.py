"""Weights that bitsandbytes keeps in 4 bits, in a model that the trainer was given or loaded the way TRL loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from peft import LoraConfig, get_peft_model
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trainer.preference_runs import arguments, chat_pairs, losses, model_for
from wishbone import DPOConfig, DPOTrainer

bitsandbytes = pytest.importorskip("bitsandbytes")


def four_bit_trainer(trainer_class: Any, config_class: Any, folder: Path) -> Any:
    """A trainer that loads the model in `folder` in 4 bits and puts an adapter on it."""
    return trainer_class(
        str(folder),
        args=config_class(**arguments(folder, max_steps=3)),
        train_dataset=chat_pairs(40),
        eval_dataset=chat_pairs(4, seed=1),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )


def codes(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The 4-bit codes of every quantized weight."""
    return {name: weight.clone() for name, weight in model.named_parameters() if weight.dtype == torch.uint8}


def dtypes(trainer: Any) -> set[torch.dtype]:
    """The dtypes of what is trained."""
    return {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad}


def test_adapters_are_trained_in_float32_or_as_they_came(tmp_path: Path) -> None:
    """TRL rounds every adapter on 4-bit weights to bfloat16: those that it makes, and those that are given to it."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    model_for(tokenizer).save_pretrained(tmp_path)
    made = four_bit_trainer(DPOTrainer, DPOConfig, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    given = get_peft_model(loaded, LoraConfig(r=4, target_modules="all-linear"))
    values = {name: weight.detach().clone() for name, weight in given.named_parameters() if weight.requires_grad}
    trainer = DPOTrainer(
        given, args=DPOConfig(**arguments(tmp_path)), train_dataset=chat_pairs(8), processing_class=tokenizer
    )
    assert dtypes(made) == {torch.bfloat16}  # until it is trained, as in TRL
    made.train()
    assert dtypes(made) == {torch.float32}
    kept = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert kept.keys() == values.keys()
    for name, weight in kept.items():
        assert weight.dtype == torch.float32 and torch.equal(weight, values[name]), name


def test_codes_stay_as_they_are_and_losses_are_trls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Projections to 16 features, which bitsandbytes cannot pack, as it would in evaluation mode on some CPUs."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    model_for(tokenizer).save_pretrained(tmp_path)
    theirs = four_bit_trainer(trl.DPOTrainer, trl.DPOConfig, tmp_path)
    theirs.train()
    ours = four_bit_trainer(DPOTrainer, DPOConfig, tmp_path)
    before = codes(ours.model)
    assert len(before) == 14  # seven projections in each of two layers
    assert ours.evaluate()["eval_loss"] == pytest.approx(0.6931, abs=1e-3)
    ours.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=2e-3)
    for name, weight in codes(ours.model).items():
        assert torch.equal(weight, before[name]), name
