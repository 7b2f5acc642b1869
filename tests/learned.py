"""A tiny model and a run that changed it, for tests of what is done with a run afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wishbone.config.schema import ModelConfig
from wishbone.model.adapter import add_adapter


@dataclass(frozen=True)
class Learned:
    """A base model on disk, a run directory with an adapter for it, and the model with the adapter merged in."""

    base: ModelConfig
    run: Path
    tokenizer: PreTrainedTokenizerBase
    merged: PreTrainedModel


def learn(folder: Path) -> Learned:
    """Write a tiny base model, whose makers recommend sampling, and an adapter with random weights, into `folder`."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 3.0
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapted = add_adapter(model, rank=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    adapted.save_pretrained(folder / "run" / "adapter")
    base = ModelConfig(name=str(folder / "base"), dtype="float32")
    return Learned(base, folder / "run", tokenizer, adapted.merge_and_unload().eval())
