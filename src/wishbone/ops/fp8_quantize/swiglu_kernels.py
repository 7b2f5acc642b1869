"""Rows of silu(gate) * up, in 8 bits: one program a row.

The grid and the arguments of all kernels are described in `kernels.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.fp8_quantize.kernels import (
    LARGEST_E4M3,
    LARGEST_INT8,
    magnitude,
    row_scale,
    store_quantized,
    to_8_bits,
    turned_row,
)
from wishbone.ops.kernel_parts import load_row, whole_row


@triton.jit
def _swiglu(gate_ptr, up_ptr, row, stride_gate_row, stride_up_row, column, inside):
    """Return a row of silu(gate) * up in float32, 0 where not `inside`."""
    gate = load_row(gate_ptr, row, stride_gate_row, column, inside)
    up = load_row(up_ptr, row, stride_up_row, column, inside)
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def swiglu(
    gate_ptr,
    up_ptr,
    product_ptr,
    values_ptr,
    scale_ptr,
    signs_ptr,
    stride_gate_row,
    stride_up_row,
    columns,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
    DIVISOR: tl.constexpr,
    TURN: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write a row of silu(gate) * up in 8 bits, after rounding it to the dtype of `product_ptr`.

    If KEEP, write the product [R, C], contiguous, there, too.
    """
    row, column, inside = whole_row(columns, BLOCK)
    result = _swiglu(gate_ptr, up_ptr, row, stride_gate_row, stride_up_row, column, inside)
    result = result.to(product_ptr.dtype.element_ty)
    if KEEP:
        tl.store(product_ptr + row * columns + column, result, mask=inside)
    result = turned_row(result, column, signs_ptr, TURN, BLOCK, IN_REGISTERS)
    values_at = values_ptr + row * columns + column
    if IN_REGISTERS > 0:
        values_at = tl.max_contiguous(values_at, [IN_REGISTERS])
    store_quantized(result, values_at, scale_ptr + row, inside, DIVISOR, INTERPRETED)


@triton.jit
def swiglu_both(
    gate_ptr,
    up_ptr,
    reference_gate_ptr,
    reference_up_ptr,
    product_ptr,
    values_ptr,
    scale_ptr,
    difference_ptr,
    difference_scale_ptr,
    signs_ptr,
    stride_gate_row,
    stride_up_row,
    stride_reference_gate_row,
    stride_reference_up_row,
    columns,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
    DIVISOR: tl.constexpr,
    TURN: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write a row of the reference's silu(gate) * up in 8 bits, and the policy's less the reference's.

    Both products are rounded to the dtype of `product_ptr` first. If KEEP, write the policy's there, as `swiglu`. Four
    rows do not fit into registers: BLOCK columns are computed at a time, once for the largest elements and once more,
    read from the cache, for the values.

    Args:
        reference_gate_ptr, reference_up_ptr: the reference's rows; the policy's are at `gate_ptr` and `up_ptr`.
        values_ptr, scale_ptr: of the reference's rows.
        difference_ptr, difference_scale_ptr: of the differences, likewise.
        BLOCK: power of two, a multiple of TURN.
    """
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = product_ptr.dtype.element_ty
    form: tl.constexpr = values_ptr.dtype.element_ty
    LARGEST: tl.constexpr = LARGEST_INT8 if form == tl.int8 else LARGEST_E4M3
    largest = tl.zeros((BLOCK,), tl.int32)
    change_largest = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        reference = _swiglu(
            reference_gate_ptr,
            reference_up_ptr,
            row,
            stride_reference_gate_row,
            stride_reference_up_row,
            column,
            inside,
        )
        exact = turned_row(reference.to(dtype), column, signs_ptr, TURN, BLOCK, IN_REGISTERS)
        result = _swiglu(gate_ptr, up_ptr, row, stride_gate_row, stride_up_row, column, inside)
        change = turned_row(result.to(dtype), column, signs_ptr, TURN, BLOCK, IN_REGISTERS) - exact
        largest = tl.maximum(largest, magnitude(exact))
        change_largest = tl.maximum(change_largest, magnitude(change))
    own_scale, factor = row_scale(tl.max(largest, axis=0), LARGEST, DIVISOR)
    tl.store(scale_ptr + row, own_scale)
    own_scale, change_factor = row_scale(tl.max(change_largest, axis=0), LARGEST, DIVISOR)
    tl.store(difference_scale_ptr + row, own_scale)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        at = row * columns + column
        reference = _swiglu(
            reference_gate_ptr,
            reference_up_ptr,
            row,
            stride_reference_gate_row,
            stride_reference_up_row,
            column,
            inside,
        )
        exact = turned_row(reference.to(dtype), column, signs_ptr, TURN, BLOCK, IN_REGISTERS)
        result = _swiglu(gate_ptr, up_ptr, row, stride_gate_row, stride_up_row, column, inside).to(dtype)
        if KEEP:
            tl.store(product_ptr + at, result, mask=inside)
        change = turned_row(result, column, signs_ptr, TURN, BLOCK, IN_REGISTERS) - exact
        own_at, other_at = values_ptr + at, difference_ptr + at
        if IN_REGISTERS > 0:
            own_at = tl.max_contiguous(own_at, [IN_REGISTERS])
            other_at = tl.max_contiguous(other_at, [IN_REGISTERS])
        tl.store(own_at, to_8_bits(exact * factor, form, INTERPRETED), mask=inside)
        tl.store(other_at, to_8_bits(change * change_factor, form, INTERPRETED), mask=inside)


@triton.jit
def _pinned(x, INTERPRETED: tl.constexpr):
    """Return x of 16 bits, which the compiler then keeps as it is: it does not compute or widen it again."""
    if not INTERPRETED:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
    return x


@triton.jit
def swiglu_both_held(
    gate_ptr,
    up_ptr,
    reference_gate_ptr,
    reference_up_ptr,
    product_ptr,
    values_ptr,
    scale_ptr,
    difference_ptr,
    difference_scale_ptr,
    stride_gate_row,
    stride_up_row,
    stride_reference_gate_row,
    stride_reference_up_row,
    columns,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
    DIVISOR: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Do what `swiglu_both` does for rows of 16 bits that are not rotated, and read each once.

    Both products stay in registers, rounded to 16 bits, until the largest elements are known. Arguments as
    `swiglu_both`; BLOCK is at least `columns`.
    """
    row, column, inside = whole_row(columns, BLOCK)
    dtype: tl.constexpr = product_ptr.dtype.element_ty
    reference = _swiglu(
        reference_gate_ptr, reference_up_ptr, row, stride_reference_gate_row, stride_reference_up_row, column, inside
    )
    reference = _pinned(reference.to(dtype), INTERPRETED)
    result = _swiglu(gate_ptr, up_ptr, row, stride_gate_row, stride_up_row, column, inside)
    result = _pinned(result.to(dtype), INTERPRETED)
    at = row * columns + column
    if KEEP:
        tl.store(product_ptr + at, result, mask=inside)
    exact = reference.to(tl.float32)
    own_scale, factor = row_scale(tl.max(magnitude(exact), axis=0), LARGEST_E4M3, DIVISOR)
    tl.store(scale_ptr + row, own_scale)
    change = result.to(tl.float32) - exact
    own_scale, change_factor = row_scale(tl.max(magnitude(change), axis=0), LARGEST_E4M3, DIVISOR)
    tl.store(difference_scale_ptr + row, own_scale)
    exact = _pinned(reference, INTERPRETED).to(tl.float32)
    tl.store(values_ptr + at, to_8_bits(exact * factor, tl.float8e4nv, INTERPRETED), mask=inside)
    change = _pinned(result, INTERPRETED).to(tl.float32) - exact
    tl.store(difference_ptr + at, to_8_bits(change * change_factor, tl.float8e4nv, INTERPRETED), mask=inside)
