"""Triton kernels of the elementwise part of a gated MLP; `elementwise.py` has the equations.

Arguments of the kernels, for T tokens and I = columns elements of each:

    product_ptr           [T, I]: p on output; in the backward kernels dp on input
    gate_ptr, up_ptr      [T, I]: g and u; in the backward kernels dg and du on output
    both_ptr              [T, 2 I], contiguous: gate and up side by side, as gate_ptr and up_ptr
    stride_product_row    elements from one row to the next, likewise stride_gate_row and stride_up_row; the elements of
                          a row lie side by side
    SILU                  whether a is SiLU, otherwise the tanh approximation of GELU
    BLOCK                 columns that are computed at a time, a power of two

Arithmetic is float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.fp8_quantize.kernels import LARGEST_E4M3, LARGEST_INT8, magnitude, row_scale, to_8_bits
from wishbone.ops.gated_mlp.elementwise import GELU_CUBIC, GELU_SLOPE
from wishbone.ops.kernel_parts import load_row, part_of_row

SLOPE = tl.constexpr(GELU_SLOPE)
CUBIC = tl.constexpr(GELU_CUBIC)


@triton.jit
def sigmoid_of(g, SILU: tl.constexpr):
    """Return a(g) / g, a sigmoid."""
    return tl.sigmoid(g if SILU else (g + g * g * g * CUBIC) * (2 * SLOPE))


@triton.jit
def gradients(dp, g, u, SILU: tl.constexpr):
    """Return p, dg and du."""
    share = sigmoid_of(g, SILU)
    value = g * share
    if SILU:
        slope = share * (1 + g * (1 - share))
    else:
        slope = share + g * share * (1 - share) * (2 * SLOPE) * (1 + g * g * (3 * CUBIC))
    return value * u, dp * u * slope, dp * value


@triton.jit
def forward(
    product_ptr,
    gate_ptr,
    up_ptr,
    stride_product_row,
    stride_gate_row,
    stride_up_row,
    columns,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write p for BLOCK columns of one token; grid (T, I / BLOCK)."""
    row, column, inside = part_of_row(columns, BLOCK)
    g = load_row(gate_ptr, row, stride_gate_row, column, inside)
    u = load_row(up_ptr, row, stride_up_row, column, inside)
    tl.store(product_ptr + row * stride_product_row + column, g * sigmoid_of(g, SILU) * u, mask=inside)


@triton.jit
def backward(
    product_ptr,
    gate_ptr,
    up_ptr,
    stride_product_row,
    stride_gate_row,
    stride_up_row,
    columns,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Overwrite dp, g and u with p, dg and du for BLOCK columns of one token; grid (T, I / BLOCK)."""
    row, column, inside = part_of_row(columns, BLOCK)
    dp = load_row(product_ptr, row, stride_product_row, column, inside)
    g = load_row(gate_ptr, row, stride_gate_row, column, inside)
    u = load_row(up_ptr, row, stride_up_row, column, inside)
    product, gate_gradient, up_gradient = gradients(dp, g, u, SILU)
    tl.store(product_ptr + row * stride_product_row + column, product, mask=inside)
    tl.store(gate_ptr + row * stride_gate_row + column, gate_gradient, mask=inside)
    tl.store(up_ptr + row * stride_up_row + column, up_gradient, mask=inside)


@triton.jit
def backward_quantized(
    product_ptr,
    both_ptr,
    column_scale_ptr,
    values_ptr,
    scale_ptr,
    stride_product_row,
    columns,
    SILU: tl.constexpr,
    DIVISOR: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Do what `backward` does for one whole token, and write its dg and du in 8 bits; grid (T,).

    The gradients are written first, which shows the largest of them, and then read again, from the cache.

    Args:
        column_scale_ptr: [2 I] float32, factors on dg and du before they are quantized.
        values_ptr: [T, 2 I] e4m3 or int8, contiguous.
        scale_ptr: [T] float32, a scale for each row of the values.
        DIVISOR: what the largest element of a row is divided by to give its scale.
        INTERPRETED: whether Triton's interpreter runs the kernel.
    """
    row = tl.program_id(0).to(tl.int64)
    dtype = both_ptr.dtype.element_ty
    form: tl.constexpr = values_ptr.dtype.element_ty
    LARGEST: tl.constexpr = LARGEST_INT8 if form == tl.int8 else LARGEST_E4M3
    product_ptr += row * stride_product_row
    gate_ptr = both_ptr + row * 2 * columns
    values_ptr += row * 2 * columns
    largest = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        dp = tl.load(product_ptr + column, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gate_ptr + column, mask=inside, other=0.0).to(tl.float32)
        u = tl.load(gate_ptr + columns + column, mask=inside, other=0.0).to(tl.float32)
        product, gate_gradient, up_gradient = gradients(dp, g, u, SILU)
        gate_gradient, up_gradient = gate_gradient.to(dtype), up_gradient.to(dtype)
        tl.store(product_ptr + column, product, mask=inside)
        tl.store(gate_ptr + column, gate_gradient, mask=inside)
        tl.store(gate_ptr + columns + column, up_gradient, mask=inside)
        scaled = gate_gradient.to(tl.float32) * tl.load(column_scale_ptr + column, mask=inside, other=0.0)
        largest = tl.maximum(largest, magnitude(scaled))
        scaled = up_gradient.to(tl.float32) * tl.load(column_scale_ptr + columns + column, mask=inside, other=0.0)
        largest = tl.maximum(largest, magnitude(scaled))
    own_scale, factor = row_scale(tl.max(largest, axis=0), LARGEST, DIVISOR)
    tl.store(scale_ptr + row, own_scale)
    tl.debug_barrier()  # the second loop reads what other threads of the program have written
    for start in range(0, 2 * columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < 2 * columns
        gradient = tl.load(gate_ptr + column, mask=inside, other=0.0).to(tl.float32)
        scaled = gradient * tl.load(column_scale_ptr + column, mask=inside, other=0.0)
        tl.store(values_ptr + column, to_8_bits(scaled * factor, form, INTERPRETED), mask=inside)
