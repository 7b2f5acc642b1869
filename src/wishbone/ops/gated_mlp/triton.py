"""The elementwise part of a gated MLP in Triton: one pass over memory forward, one backward.

The equations are in `elementwise.py`. Forward reads gate and up and writes the product: 6 bytes an element in 16 bits.
Backward reads the product's gradient, gate and up and writes the product, which the adapter of `down` needs again, and
both gradients over what it read: 12 bytes an element, and no new tensor. Arithmetic is float32.

For FP8 weights the backward pass also quantizes both gradients: one program a row, which has the row's largest number
when it has written all of them, and reads them once more from the cache. 14 bytes an element of the product instead of
18.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wishbone.ops.fp8_quantize import QuantizedRows
from wishbone.ops.fp8_quantize.triton import empty_rows, magnitude, row_scale, to_e4m3
from wishbone.ops.gated_mlp.elementwise import GELU_CUBIC, GELU_SLOPE, Activation
from wishbone.ops.launch_sizes import power_of_two, tiles

BLOCK = 1024
WARPS = 4
QUANTIZED_BLOCK = 2048
COLUMNS_A_WARP = 128
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


def gated_backward_quantized_(
    product_gradient: Tensor, both: Tensor, activation: Activation, column_scale: Tensor
) -> QuantizedRows:
    """As `gated_backward_` with gate and up side by side in one buffer [T, 2 I], contiguous, and its rows in e4m3.

    These are those of `quantize_rows(both, column_scale)` after it; column_scale [2 I] is float32.
    """
    quantized = empty_rows(both)
    (rows, columns), dp = product_gradient.shape, product_gradient
    assert both.is_contiguous() and dp.stride(1) == 1
    if rows:
        block = min(QUANTIZED_BLOCK, power_of_two(columns))
        _backward_quantized[(rows,)](
            dp,
            both,
            column_scale.contiguous(),
            quantized.values,
            quantized.scale,
            dp.stride(0),
            columns,
            SILU=activation == "silu",
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=max(1, block // COLUMNS_A_WARP),
        )
    return quantized


def _launch(kernel: Any, product: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> None:
    rows, columns = product.shape
    assert product.stride(1) == gate.stride(1) == up.stride(1) == 1
    if rows == 0:
        return
    kernel[(rows, tiles(columns, BLOCK))](
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
def _gradients(dp, g, u, SILU: tl.constexpr):
    """The product, the gradient of gate and that of up."""
    share = _share(g, SILU)
    value = g * share
    if SILU:
        slope = share * (1 + g * (1 - share))
    else:
        slope = share + g * share * (1 - share) * (2 * SLOPE) * (1 + g * g * (3 * CUBIC))
    return value * u, dp * u * slope, dp * value


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
    product, gate_gradient, up_gradient = _gradients(dp, g, u, SILU)
    tl.store(product_ptr + row * product_step + column, product, mask=inside)
    tl.store(gate_ptr + row * gate_step + column, gate_gradient, mask=inside)
    tl.store(up_ptr + row * up_step + column, up_gradient, mask=inside)


@triton.jit
def _backward_quantized(
    product_ptr,
    both_ptr,
    column_scale,
    values,
    scale,
    product_step,
    columns,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    dtype = both_ptr.dtype.element_ty
    product_ptr += row * product_step
    gate_ptr = both_ptr + row * 2 * columns
    values += row * 2 * columns
    largest = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        dp = tl.load(product_ptr + column, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gate_ptr + column, mask=inside, other=0.0).to(tl.float32)
        u = tl.load(gate_ptr + columns + column, mask=inside, other=0.0).to(tl.float32)
        product, gate_gradient, up_gradient = _gradients(dp, g, u, SILU)
        gate_gradient, up_gradient = gate_gradient.to(dtype), up_gradient.to(dtype)
        tl.store(product_ptr + column, product, mask=inside)
        tl.store(gate_ptr + column, gate_gradient, mask=inside)
        tl.store(gate_ptr + columns + column, up_gradient, mask=inside)
        scaled = gate_gradient.to(tl.float32) * tl.load(column_scale + column, mask=inside, other=0.0)
        largest = tl.maximum(largest, magnitude(scaled))
        scaled = up_gradient.to(tl.float32) * tl.load(column_scale + columns + column, mask=inside, other=0.0)
        largest = tl.maximum(largest, magnitude(scaled))
    own_scale, factor = row_scale(tl.max(largest, axis=0))
    tl.store(scale + row, own_scale)
    tl.debug_barrier()  # what other threads of the program wrote is read
    for start in range(0, 2 * columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < 2 * columns
        gradient = tl.load(gate_ptr + column, mask=inside, other=0.0).to(tl.float32)
        scaled = gradient * tl.load(column_scale + column, mask=inside, other=0.0)
        tl.store(values + column, to_e4m3(scaled * factor, INTERPRETED), mask=inside)
