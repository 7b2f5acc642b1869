"""Linear layers with adapters, written as the equation; autograd keeps what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wishbone.ops.frozen_linear.weight import FrozenWeight
from wishbone.ops.lora_linear.adapter import Adapter


def lora_linears_reference(
    x: Tensor,
    weights: Sequence[FrozenWeight],
    biases: Sequence[Tensor | None],
    adapters: Sequence[Adapter | None],
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
