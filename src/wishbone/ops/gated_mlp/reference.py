"""A gated MLP, written as the equation; autograd keeps what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor


class _Dense(Protocol):
    def dense(self) -> Tensor: ...


class _LowRank(Protocol):
    @property
    def a(self) -> Tensor: ...
    @property
    def b(self) -> Tensor: ...
    @property
    def scale(self) -> float: ...


def gated_mlp_reference(
    x: Tensor,
    weights: Sequence[_Dense],
    biases: Sequence[Tensor | None],
    adapters: Sequence[_LowRank | None],
    *,
    activation: Literal["silu", "gelu_tanh"],
) -> Tensor:
    """Return `down(act(gate(x)) * up(x))`; arguments as `gated_mlp`."""
    layers = list(zip(weights, biases, adapters, strict=True))
    if len(layers) == 2:
        gate, up = _linear(x, *layers[0]).chunk(2, dim=-1)
    else:
        gate, up = (_linear(x, *layer) for layer in layers[:2])
    value = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    return _linear(value * up, *layers[-1])


def _linear(x: Tensor, weight: _Dense, bias: Tensor | None, adapter: _LowRank | None) -> Tensor:
    y = F.linear(x, weight.dense().to(x.dtype), None if bias is None else bias.to(x.dtype))
    if adapter is None:
        return y
    return y + adapter.scale * F.linear(F.linear(x, adapter.a.to(x.dtype)), adapter.b.to(x.dtype))
