"""Linear layers with adapters, written as the equation; autograd keeps what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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


def lora_linears_reference(
    x: Tensor,
    weights: Sequence[_Dense],
    biases: Sequence[Tensor | None],
    adapters: Sequence[_LowRank | None],
) -> tuple[Tensor, ...]:
    """Return `x W_i^T + b_i + s_i (x A_i^T) B_i^T` for each layer, in the dtype of `x`; arguments as `lora_linears`."""
    outputs = []
    for weight, bias, adapter in zip(weights, biases, adapters, strict=True):
        y = x @ weight.dense().to(x.dtype).t()
        if bias is not None:
            y = y + bias.to(x.dtype)
        if adapter is not None:
            y = y + adapter.scale * (x @ adapter.a.to(x.dtype).t()) @ adapter.b.to(x.dtype).t()
        outputs.append(y)
    return tuple(outputs)
