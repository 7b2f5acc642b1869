"""The experts of a mixture, written as the equation, one expert after the other; autograd keeps what it keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wishbone.ops.expert_mlp.stacked import StackedLinear


def expert_mlp_reference(
    x: Tensor,
    chosen: Tensor,
    share: Tensor,
    up: StackedLinear,
    down: StackedLinear,
    gate: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return y [T, K] in the dtype of `x`; arguments as `expert_mlp`, and `gate` is a function that autograd knows."""
    y = torch.zeros_like(x)
    for expert in range(up.shape[0]):
        token, choice = torch.where(chosen == expert)
        h = gate(_linear(up, expert, x[token]))
        out = _linear(down, expert, h) * share[token, choice, None].to(x.dtype)
        y = y.index_add(0, token, out)
    return y


def _linear(linear: StackedLinear, expert: int, x: Tensor) -> Tensor:
    weight = linear.weight[expert].detach().to(x.dtype)
    y = x @ (weight if linear.transposed else weight.t())
    if linear.bias is not None:
        y = y + linear.bias[expert].to(x.dtype)
    if linear.adapter is not None:
        a, b = linear.adapter.a[expert].to(x.dtype), linear.adapter.b[expert].to(x.dtype)
        y = y + linear.adapter.scale * (x @ a.t()) @ b.t()
    return y
