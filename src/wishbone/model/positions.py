"""How many positions a model was trained on, and whether it has any beyond them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
TABLES = frozenset({"gpt2", "gpt_neo", "opt", "openai-gpt", "xglm", "biogpt", "gpt_bigcode", "codegen"})
"""Families whose positions are rows of a table, which ends; others are computed for any position."""


def positions_of(model: Mapping[str, Any]) -> int | None:
    """Return how many positions a model was trained on, from its config.json; None if it does not say."""
    text = text_part(model)
    return next((text[name] for name in POSITIONS if isinstance(text.get(name), int)), None)


def text_part(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config.json that describes the language model."""
    nested = model.get("text_config")
    return nested if isinstance(nested, Mapping) else model
