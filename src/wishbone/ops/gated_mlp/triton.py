"""The elementwise part of a gated MLP in Triton: one pass over memory forward, one backward.

The equations are in `elementwise.py`. Forward reads gate and up and writes the product: 6 bytes an element in 16 bits.
Backward reads the product's gradient, gate and up and writes the product, which the adapter of `down` needs again, and
both gradients over what it read: 12 bytes an element, and no new tensor. Arithmetic is float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wishbone.ops.gated_mlp.elementwise import GELU_CUBIC, GELU_SLOPE, Activation

BLOCK = 1024
WARPS = 4
SLOPE = tl.constexpr(GELU_SLOPE)
CUBIC = tl.constexpr(GELU_CUBIC)


def gated_product(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Return a(gate) * up [T, I], contiguous; rows of gate and up [T, I] may be apart by more than I."""
    product = torch.empty_like(gate, memory_format=torch.contiguous_format)
    _launch(_forward, product, gate, up, activation)
    return product


def gated_backward_(product_gradient: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> None:
    """Overwrite dp with the product, gate with its gradient and up with its gradient; shapes [T, I]."""
    _launch(_backward, product_gradient, gate, up, activation)


def _launch(kernel: Any, product: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> None:
    rows, columns = product.shape
    assert product.stride(1) == gate.stride(1) == up.stride(1) == 1
    if rows == 0:
        return
    kernel[(rows, triton.cdiv(columns, BLOCK))](
        product,
        gate,
        up,
        product.stride(0),
        gate.stride(0),
        up.stride(0),
        columns,
        SILU=activation == "silu",
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


@triton.jit
def _share(g, SILU: tl.constexpr):
    """a(g) / g, a sigmoid."""
    return tl.sigmoid(g if SILU else (g + g * g * g * CUBIC) * (2 * SLOPE))


@triton.jit
def _forward(
    product_ptr, gate_ptr, up_ptr, product_step, gate_step, up_step, columns, SILU: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    g = tl.load(gate_ptr + row * gate_step + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up_ptr + row * up_step + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(product_ptr + row * product_step + column, g * _share(g, SILU) * u, mask=inside)


@triton.jit
def _backward(
    product_ptr, gate_ptr, up_ptr, product_step, gate_step, up_step, columns, SILU: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    dp = tl.load(product_ptr + row * product_step + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate_ptr + row * gate_step + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up_ptr + row * up_step + column, mask=inside, other=0.0).to(tl.float32)
    share = _share(g, SILU)
    value = g * share
    if SILU:
        slope = share * (1 + g * (1 - share))
    else:
        slope = share + g * share * (1 - share) * (2 * SLOPE) * (1 + g * g * (3 * CUBIC))
    tl.store(product_ptr + row * product_step + column, value * u, mask=inside)
    tl.store(gate_ptr + row * gate_step + column, dp * u * slope, mask=inside)
    tl.store(up_ptr + row * up_step + column, dp * value, mask=inside)
