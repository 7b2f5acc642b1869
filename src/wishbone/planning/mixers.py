"""Kinds of layers of a hybrid, and the linear layers of those that mix tokens by a recurrence or a short convolution.

Layers of most hybrids attend or run a recurrence, and all have an MLP. Each layer of Nemotron-H does one thing: its
config.json names attention, recurrence, MLP or experts for each, in a list or as letters of a pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

RECURRENT_TYPES = frozenset({"conv", "linear_attention", "mamba"})
"""Kinds of layers that mix tokens by a recurrence or a short convolution, as `layer_types` names them."""
LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""Kinds of layers in the pattern of Nemotron-H's published files."""
KEPT_OF_MIXER = 2
"""Elements that a recurrent layer keeps for its backward pass for each output of its projections: these, convolved
inputs, and the gated output. A layer of Qwen3.5's shape was measured at 72 KB a token on an H200, with its MLP."""

Size = Callable[..., int]
"""Returns a size of the file by its name; without a default one that is missing is noted."""


@dataclass(frozen=True)
class Linear:
    """The linear layers of one name: their inputs and outputs, and how many the model has."""

    name: str
    inputs: int
    outputs: int
    count: int = 1


def recurrent_layers(config: Mapping[str, Any], size: Size, layers: int) -> int:
    """Return how many of `layers` mix tokens by a recurrence: as `layer_types` says, or by Jamba's period."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return min(sum(isinstance(kind, str) and kind in RECURRENT_TYPES for kind in kinds), layers)
    attending = every_of(layers, size("attn_layer_period", 0), size("attn_layer_offset", 0))
    return layers - attending if attending else 0


def single_kinds(config: Mapping[str, Any]) -> list[Any]:
    """Return what each layer does in a family whose layers do one thing each; empty where the file does not say."""
    kinds, pattern = config.get("layers_block_type"), config.get("hybrid_override_pattern")
    if isinstance(kinds, list):
        return kinds
    return [LETTERS.get(letter) for letter in pattern] if isinstance(pattern, str) else []


def every_of(layers: int, period: int, offset: int) -> int:
    """Return how many of `layers` are the `offset`-th of a period; none without a period."""
    return sum(layer % period == offset for layer in range(layers)) if period else 0


def mixer_of(size: Size, hidden: int, inner: int) -> tuple[Linear, ...]:
    """Return the linear layers of a recurrent layer, by the sizes that the file names; the last one projects out.

    Args:
        size: reads a size.
        hidden: elements of a token between layers.
        inner: within a layer of a model of Mamba layers alone; 0 where the file names it otherwise.
    """
    if heads := size("linear_num_value_heads", 0):  # gated delta rule
        value = heads * size("linear_value_head_dim")
        key = size("linear_num_key_heads") * size("linear_key_head_dim")
        sizes = {"in_proj_qkv": 2 * key + value, "in_proj_z": value, "in_proj_b": heads, "in_proj_a": heads}
        into = tuple(Linear(name, hidden, outputs) for name, outputs in sizes.items())
        return (*into, Linear("out_proj", value, hidden))
    if heads := size("mamba_n_heads", 0):  # Mamba-2
        inner = heads * size("mamba_d_head", size("mamba_expand", 2) * hidden // heads)
        state = size("mamba_n_groups", 1) * size("mamba_d_state", 128)
        return (Linear("in_proj", hidden, 2 * inner + 2 * state + heads), Linear("out_proj", inner, hidden))
    if state := size("mamba_d_state", 0) or size("state_size", 0):  # Mamba
        inner = inner or (size("mamba_expand", 0) or size("expand", 2)) * hidden
        rank = -(-hidden // 16)
        return (
            Linear("in_proj", hidden, 2 * inner),
            Linear("x_proj", inner, rank + 2 * state),
            Linear("dt_proj", rank, inner),
            Linear("out_proj", inner, hidden),
        )
    return (Linear("in_proj", hidden, 3 * hidden), Linear("out_proj", hidden, hidden))  # a short convolution
