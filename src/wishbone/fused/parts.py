"""Which parts of a model have a fused form, or could have one: recognized by the names of their classes.

Names only say where to look, so that a part that runs the model's own code is counted. What is fused is found out by
trying (`norm.py`, `mlp.py`, `rotary.py`), whatever the class is called.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Literal

from torch import nn

Part = Literal["attention", "rotary embedding", "norm", "MLP", "linear group", "experts", "recurrence", "output head"]
"""Kinds of parts, in the order in which they are shown."""

_NORM = re.compile(r"Norm")
_RECURRENCE = re.compile(
    r"Mixer$|MambaLayer$|DeltaNet$|DeltaAttention$|ShortConv$|LightningAttention$|RecurrentBlock$|Rwkv\w*Attention$"
)
_ATTENTION = re.compile(r"Attention$|Attention2$|MLA$")
_EXPERTS = re.compile(r"Experts$|NaiveMoe$")
_MLP = re.compile(r"MLP\w*$|FeedForward$|FFN$")
_ROTARY = re.compile(r"Rotary\w*Embedding")


def part_of(module: nn.Module) -> Part | None:
    """Return which part a module is, by the name of its class; None for what has no fused form and needs none."""
    name = type(module).__name__
    if is_norm(module):
        return "norm"
    if is_recurrence(module):
        return "recurrence"
    if _is(name, _EXPERTS):
        return "experts"
    if _is(name, _ATTENTION) and not _within(module, _ATTENTION):
        return "attention"
    if _is(name, _MLP) and not _within(module, _EXPERTS) and not _within(module, _MLP):
        return "MLP"
    return None


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is the part "norm"."""
    return _is(type(module).__name__, _NORM)


def is_recurrence(module: nn.Module) -> bool:
    """Return whether a module is the part "recurrence"."""
    return _is(type(module).__name__, _RECURRENCE) and not is_norm(module)


@cache
def _is(name: str, kind: re.Pattern[str]) -> bool:
    """Return whether a class of this name is of a kind; a model has few classes and is searched many times."""
    return kind.search(name) is not None


def _within(module: nn.Module, kind: re.Pattern[str]) -> bool:
    """Return whether a module below this one is of a kind."""
    return any(_is(type(child).__name__, kind) for child in module.modules() if child is not module)


def has_rotary_embedding(model: nn.Module) -> bool:
    """Return whether a model has a module that computes the angles of rotary embeddings."""
    return any(_ROTARY.search(type(module).__name__) for module in model.modules())


def text_layers(model: Any) -> tuple[str, nn.Module]:
    """Return the part of a model that runs over tokens, without towers for images or sound, and its name.

    Args:
        model: a transformers model, with or without PEFT's adapters.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = base.get_decoder() if hasattr(base, "get_decoder") else base
    return next(((name, module) for name, module in model.named_modules() if module is layers), ("", model))
