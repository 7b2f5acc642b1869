"""Between training and generating: the modes of Unsloth's models."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn

from wishbone.errors import RequestError
from wishbone.policy.activations import allow_recompute, choose_activations, chosen_activations
from wishbone.unsloth.arguments import treatment_of


def for_inference(model: Any) -> Any:
    """Prepare the model to generate (evaluation mode, key-value cache, no recomputation) and return it."""
    base = _base(model)
    for module in base.modules():
        if "gradient_checkpointing" in vars(module):
            module.gradient_checkpointing = False
    base.config.use_cache = True
    _pad(model, "left")
    return model.eval()


def for_training(model: Any, use_gradient_checkpointing: bool | str | None = None) -> Any:
    """Prepare the model to train again, with activations treated as before unless given, and return it."""
    base = _base(model)
    if use_gradient_checkpointing is not None:
        choose_activations(model, treatment_of(use_gradient_checkpointing))
    if chosen_activations(model) in ("recompute", "offload"):
        allow_recompute(base)
    base.config.use_cache = False
    _pad(model, "right")
    return model.train()


def _base(model: Any) -> Any:
    if not isinstance(model, nn.Module):
        raise RequestError(f"a {type(model).__name__} was given in place of the model; give the model")
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _pad(model: Any, side: str) -> None:
    saved = getattr(model, "saved_tokenizer", None)
    if saved is not None:
        getattr(saved, "tokenizer", saved).padding_side = side
