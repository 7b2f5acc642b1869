"""Kinds of layers of a hybrid, and the linear layers of those that mix tokens by a recurrence or a short convolution.

Layers of most hybrids attend or run a recurrence, and all have an MLP. Each layer of Nemotron-H does one thing: its
config.json names attention, recurrence, MLP or experts for each, in a list or as letters of a pattern.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

RECURRENT_TYPES = frozenset({"conv", "linear_attention", "mamba"})
"""Kinds of layers that mix tokens by a recurrence or a short convolution, as `layer_types` names them."""
LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""Kinds of layers in the pattern of Nemotron-H's published files."""
KEPT_OF_MIXER = 2
"""Elements that a recurrent layer keeps for its backward pass for each output of its projections: these, and convolved
inputs, the scan's output or the gated one; the other of the two comes on top. With its MLP, a layer of Qwen3.5's shape
was measured at 72 KB a token on an H200."""

SCAN_CHUNK = 64
"""Tokens of a chunk of a scan, which keeps one state for each."""
MOST_STATE_BYTES = 1 << 29
"""States that a scan's kernels hold at once; more heads run one part after the other."""

DELTA_HOST, MAMBA_HOST = 0.016, 0.008
"""Seconds of the host for a layer of the gated delta rule and of Mamba-2 beyond one that attends, forward and backward:
rows of Qwen3.5's shape took 22 ms a layer kept and 27 recomputed, of Granite 4's 16 and 23."""

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


@dataclass(frozen=True)
class Scan:
    """What the kernels of a scan hold in float32 in their backward pass, in elements a token.

    Attributes:
        held: all that comes and goes, with the states.
        states: the states before each chunk, once.
        host: seconds that the host needs for such a layer beyond those of one that attends.
    """

    held: int = 0
    states: int = 0
    host: float = 0.0

    def bytes_of(self, tokens: float) -> float:
        """Return the bytes for a row of so many tokens."""
        parts = max(1, math.ceil(4 * self.states * tokens / MOST_STATE_BYTES))
        return 4 * self.held * tokens / parts


NO_SCAN = Scan()


def scan_of(size: Size) -> Scan:
    """Return what the kernels of the gated delta rule or of Mamba-2 hold; nothing for other recurrences.

    For each head with keys of K and values of V elements these are writes and their gradients (2 V), the gradients of
    queries and keys (2 K), states and their gradients (2 K V a chunk); in the delta rule the inverse of a chunk and
    what it reads (64 + K).
    """
    delta = size("linear_num_value_heads", 0)
    heads = delta or size("mamba_n_heads", 0)
    if not heads:
        return NO_SCAN
    names = ("linear_key_head_dim", "linear_value_head_dim") if delta else ("mamba_d_state", "mamba_d_head")
    key, value = (size(name, 0) for name in names)
    states = key * value // SCAN_CHUNK
    held = 2 * (key + value + states) + (SCAN_CHUNK + key if delta else 0)
    return Scan(heads * held, heads * states, DELTA_HOST if delta else MAMBA_HOST)


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
