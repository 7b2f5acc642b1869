r"""The elementwise part of a gated MLP and its derivative, in place, in plain PyTorch.

    p = a(g) u,      dg = dp u a'(g),      du = dp a(g)

    silu        a(g) = g s(g),                     a'(g) = s(g) (1 + g (1 - s(g))),      s = sigmoid
    gelu_tanh   a(g) = g s(2 z),                   a'(g) = s(2 z) + 2 g s(2 z) (1 - s(2 z)) z'
                z = c (g + 0.044715 g^3),          z' = c (1 + 0.134145 g^2),            c = sqrt(2 / pi)

(1 + tanh z) / 2 is s(2 z). 16-bit inputs are computed in float32 and rounded once.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from wishbone.ops.fp8_quantize import QuantizedRows, RowForm
from wishbone.ops.fp8_quantize.reference import quantize_rows_reference

Activation = Literal["silu", "gelu_tanh"]
"""SiLU (SwiGLU: Llama, Qwen, Mistral, ...) or the tanh approximation of GELU (GeGLU: Gemma)."""

GELU_SLOPE = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715


def activate(gate: Tensor, activation: Activation) -> Tensor:
    """Return a(gate)."""
    if activation == "silu":
        return torch.nn.functional.silu(gate)
    return torch.nn.functional.gelu(gate, approximate="tanh")


def gated_product(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Return p = a(gate) * up, shapes [T, I], contiguous."""
    precise = torch.promote_types(gate.dtype, torch.float32)
    return activate(gate.to(precise), activation).mul_(up).to(gate.dtype)


def gated_backward_(product_gradient: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> None:
    """Overwrite dp with p, gate with dg and up with du; shapes [T, I]."""
    precise = torch.promote_types(gate.dtype, torch.float32)
    dp, g, u = product_gradient.to(precise), gate.to(precise), up.to(precise)
    value, value_gradient = activate(g, activation), dp * u
    if activation == "silu":
        gate.copy_(torch.ops.aten.silu_backward(value_gradient, g))
    else:
        gate.copy_(torch.ops.aten.gelu_backward(value_gradient, g, approximate="tanh"))
    product = torch.mul(value, u, out=value_gradient)
    up.copy_(value.mul_(dp))
    product_gradient.copy_(product)


def gated_backward_quantized_(
    product_gradient: Tensor, both: Tensor, activation: Activation, column_scale: Tensor, form: RowForm
) -> QuantizedRows:
    """As `gated_backward_` with gate and up side by side in `both` [T, 2 I]; return `quantize_rows` of the result."""
    gate, up = both.chunk(2, dim=1)
    gated_backward_(product_gradient, gate, up, activation)
    return quantize_rows_reference(both, column_scale, form=form)
