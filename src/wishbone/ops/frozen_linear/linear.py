"""A frozen linear layer for autograd: it saves nothing, as the gradient of its input does not depend on the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wishbone.ops.frozen_linear.weight import FrozenWeight


def frozen_linear(x: Tensor, weight: FrozenWeight, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias, [..., N], differentiable in x [..., K] and bias [N]; under autocast in its dtype."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    y: Tensor = _FrozenLinear.apply(x, weight, None if bias is None else bias.to(x.dtype))
    return y


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        rows = x.reshape(-1, weight.in_features)
        return weight.forward(weight.prepare(rows), bias).view(*x.shape[:-1], weight.out_features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight: FrozenWeight = ctx.weight
        grad = grads[0].reshape(-1, weight.out_features)
        wants_input, _, wants_bias = ctx.needs_input_grad
        dx = weight.backward(grad).view(*grads[0].shape[:-1], weight.in_features) if wants_input else None
        return dx, None, grad.sum(0) if wants_bias else None
