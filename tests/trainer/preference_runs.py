"""Small preference-optimization runs that several tests compare."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "looked",
    "at",
    "birds",
    "while",
    "rain",
    "fell",
    "over",
    "green",
    "hills",
    "near",
    "old",
    "stone",
    "walls",
]


@cache
def chat_pairs(count: int, seed: int = 0) -> Dataset:
    """Ragged chat pairs of synthetic sentences."""
    rng = random.Random(seed)

    def text(role: str) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))}]

    rows = [{"prompt": text("user"), "chosen": text("assistant"), "rejected": text("assistant")} for _ in range(count)]
    return Dataset.from_list(rows)


def arguments(output_dir: Path, **overrides: Any) -> dict[str, Any]:
    """Arguments for TRL's or our `DPOConfig`: CPU, float32, three steps of eight pairs, everything logged."""
    return {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "max_length": 128,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
        **overrides,
    }


def model_for(tokenizer: Any, family: str = "llama") -> PreTrainedModel:
    """A tiny model whose vocabulary is the tokenizer's, the same at every call."""
    return tiny_model(family, vocab_size=len(tokenizer))


def run(trainer_class: Any, config_class: Any, output_dir: Path, **overrides: Any) -> Any:
    """Train LoRA on `chat_pairs(40)` with a trainer class and return the trainer."""
    tokenizer = tiny_tokenizer()
    trainer = trainer_class(
        model_for(tokenizer),
        args=config_class(**arguments(output_dir, **overrides)),
        train_dataset=chat_pairs(40),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    """The loss of every optimizer step, unrounded where the trainer kept it so."""
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def adapter(trainer: Any) -> torch.Tensor:
    """All adapter weights, one after the other."""
    named = sorted((n, p) for n, p in trainer.model.named_parameters() if "lora_" in n and ".default" in n)
    return torch.cat([parameter.detach().flatten() for _, parameter in named])
