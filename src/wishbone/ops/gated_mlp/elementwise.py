r"""The elementwise part of a gated MLP and its derivative, in place, in plain PyTorch.

    p = a(g) u,      dg = dp u a'(g),      du = dp a(g)

    silu        a(g) = g s(g),                     a'(g) = s(g) (1 + g (1 - s(g))),      s = sigmoid
    gelu_tanh   a(g) = g s(2 z),                   a'(g) = s(2 z) + 2 g s(2 z) (1 - s(2 z)) z'
                z = c (g + 0.044715 g^3),          z' = c (1 + 0.134145 g^2),            c = sqrt(2 / pi)

(1 + tanh z) / 2 is s(2 z). 16-bit inputs are computed in float32 and rounded once. What adapters add to g, u and dp may
be added here, to numbers that are not rounded again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Activation = Literal["silu", "gelu_tanh"]
"""SiLU (SwiGLU: Llama, Qwen, Mistral, ...) or the tanh approximation of GELU (GeGLU: Gemma)."""

Low = tuple[Tensor, Tensor]
"""Factors l [T, r] and F [r, I] of what an adapter adds to a tensor [T, I] that does not have it yet."""

Lows = Sequence[Low | None]

GELU_SLOPE = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715


def activate(gate: Tensor, activation: Activation) -> Tensor:
    """Return a(gate)."""
    if activation == "silu":
        return torch.nn.functional.silu(gate)
    return torch.nn.functional.gelu(gate, approximate="tanh")


def gated_product(gate: Tensor, up: Tensor, activation: Activation, lows: Lows = (None, None)) -> Tensor:
    """Return p = a(g) u, shapes [T, I], contiguous; g and u are gate and up with what adapters add to them."""
    g, u = map(_with_low, (gate, up), lows)
    return activate(g, activation).mul_(u).to(gate.dtype)


def gated_backward_(
    product_gradient: Tensor, gate: Tensor, up: Tensor, activation: Activation, lows: Lows = (None, None, None)
) -> None:
    """Overwrite dp with p, gate with dg and up with du; shapes [T, I]; `lows` are of dp, gate and up."""
    dp, g, u = map(_with_low, (product_gradient, gate, up), lows)
    value, value_gradient = activate(g, activation), dp * u
    if activation == "silu":
        gate.copy_(torch.ops.aten.silu_backward(value_gradient, g))
    else:
        gate.copy_(torch.ops.aten.gelu_backward(value_gradient, g, approximate="tanh"))
    product = torch.mul(value, u, out=value_gradient)
    up.copy_(value.mul_(dp))
    product_gradient.copy_(product)


def _with_low(tensor: Tensor, low: Low | None) -> Tensor:
    exact = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return exact if low is None else exact + low[0].to(exact.dtype) @ low[1].to(exact.dtype)
