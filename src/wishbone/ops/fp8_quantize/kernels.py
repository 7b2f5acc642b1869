"""Triton kernels that bring rows to 8 bits: one program a row.

A program holds its whole row, so it reads it once. Division and square root, once a row, are rounded correctly, and so
are all products: values and scales are those of the reference bit by bit. (On GPUs of compute capability 8.9 Triton
converts by way of float16 and cuts off, which can take a value just above the middle between two e4m3 values to the
lower one.) Triton's interpreter, whose conversion to e4m3 loses carries of the mantissa, gets values that are rounded
to the grid of e4m3 first.

Rows in int8 are rotated by a product of tensor cores, whose float32 sums may come in another order than the
reference's: a value in the middle between two integers may become the other one.

Grid (R,) for R rows of C = columns elements. Arguments of all kernels, also of those with a norm or an activation on
the way (`norm_kernels.py`, `swiglu_kernels.py`):

    x_ptr, gate_ptr, up_ptr, do_ptr ...  rows of C elements: float32, bfloat16 or float16
    stride_x_row ...                    elements from one of these rows to the next; those of a row lie side by side
    values_ptr                          [R, C] e4m3 or int8, contiguous
    scale_ptr                           [R] float32, a scale for each row of the values
    signs_ptr                           H [TURN, TURN] (`rotation.py`); read if TURN is not 0
    DIVISOR                             what the largest element of a row is divided by to give its scale
    TURN                                columns that are rotated together; 0 for none
    IN_REGISTERS                        elements of a thread side by side where `register_rotation.py` does it; or 0
    BLOCK                               power of two, at least C
    INTERPRETED                         whether Triton's interpreter runs the kernel
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.fp8_quantize.register_rotation import rotated_in_registers
from wishbone.ops.fp8_quantize.rows import E4M3_MAX, INT8_MAX, SMALLEST_AMAX
from wishbone.ops.kernel_parts import load_row, whole_row

LARGEST_E4M3 = tl.constexpr(E4M3_MAX)
LARGEST_INT8 = tl.constexpr(INT8_MAX)
TO_INTEGER = tl.constexpr(1.5 * 2**23)
"""Added to a float32 below 2^22 and subtracted again, it rounds to the nearest integer, ties to even."""
SMALLEST = tl.constexpr(SMALLEST_AMAX)


@triton.jit
def magnitude(x):
    """Return the bit pattern of |x|: integers in the order of the floats, then infinity, then NaN."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def row_scale(largest_magnitude, LARGEST: tl.constexpr, DIVISOR: tl.constexpr):
    """Return the scale of a row whose largest element has this `magnitude`, and the factor that makes it LARGEST."""
    amax = largest_magnitude.to(tl.float32, bitcast=True)
    amax = tl.where(amax < SMALLEST, SMALLEST, amax)
    return tl.div_rn(amax, DIVISOR), tl.div_rn(LARGEST, amax)


@triton.jit
def to_e4m3(scaled, INTERPRETED: tl.constexpr):
    """Return float32 elements rounded to e4m3.

    For the interpreter they are rounded to 3 bits of mantissa, or to multiples of 2^-9, by adding and subtracting
    1.5 2^20 times the power of 2 below them.
    """
    if INTERPRETED:
        power = (scaled.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        shift = tl.maximum(power, 0.015625) * 1572864.0
        scaled = (scaled + shift) - shift
    return scaled.to(tl.float8e4nv)


@triton.jit
def to_8_bits(scaled, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """Return float32 elements rounded to `dtype`, e4m3 or int8; what is not finite becomes any int8."""
    return ((scaled + TO_INTEGER) - TO_INTEGER).to(tl.int8) if dtype == tl.int8 else to_e4m3(scaled, INTERPRETED)


@triton.jit
def rotated_row(x, signs_ptr, TURN: tl.constexpr, BLOCK: tl.constexpr):
    """Return H of each block of TURN columns of a row of BLOCK, in float32; the row itself if TURN is 0.

    The row comes in its own dtype, in which tensor cores multiply it without error.
    """
    if TURN > 1:
        at = tl.arange(0, TURN)
        signs = tl.load(signs_ptr + at[:, None] * TURN + at[None, :])
        if x.dtype.primitive_bitwidth == 16 and signs.dtype == x.dtype:
            # else the compiler computes x once more in each warp, to have it where a product of Ampere's reads it
            x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
        blocks = tl.reshape(x, (BLOCK // TURN, TURN)).to(signs.dtype)
        # H x rather than x H: with the blocks on the right, a row lies in shared memory, and a Hopper multiplies there
        turned = tl.dot(signs, tl.trans(blocks), input_precision="ieee")
        result = tl.reshape(tl.trans(turned), (BLOCK,))
    else:
        result = x.to(tl.float32)
    return result


@triton.jit
def turned_row(x, column, signs_ptr, TURN: tl.constexpr, BLOCK: tl.constexpr, IN_REGISTERS: tl.constexpr):
    """Return `rotated_row`, without shared memory if IN_REGISTERS; column [BLOCK] are the columns of the row."""
    if IN_REGISTERS > 0:
        result = rotated_in_registers(x, column, TURN, IN_REGISTERS)
    else:
        result = rotated_row(x, signs_ptr, TURN, BLOCK)
    return result


@triton.jit
def store_quantized(exact, values_ptr, scale_ptr, inside, DIVISOR: tl.constexpr, INTERPRETED: tl.constexpr):
    """Store one row of float32 elements, 0 where not `inside`, in 8 bits at [BLOCK] pointers, and its scale."""
    dtype: tl.constexpr = values_ptr.dtype.scalar.element_ty
    LARGEST: tl.constexpr = LARGEST_INT8 if dtype == tl.int8 else LARGEST_E4M3
    own_scale, factor = row_scale(tl.max(magnitude(exact), axis=0), LARGEST, DIVISOR)
    tl.store(values_ptr, to_8_bits(exact * factor, dtype, INTERPRETED), mask=inside)
    tl.store(scale_ptr, own_scale)


@triton.jit
def quantize(
    x_ptr,
    column_scale_ptr,
    values_ptr,
    scale_ptr,
    signs_ptr,
    stride_x_row,
    columns,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    DIVISOR: tl.constexpr,
    TURN: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write a row of x in 8 bits; if SCALED, of x times `column_scale_ptr` [C], which is not rotated."""
    row, column, inside = whole_row(columns, BLOCK)
    exact = load_row(x_ptr, row, stride_x_row, column, inside)
    if SCALED:
        exact = exact * tl.load(column_scale_ptr + column, mask=inside, other=0.0).to(tl.float32)
    else:
        exact = turned_row(exact.to(x_ptr.dtype.element_ty), column, signs_ptr, TURN, BLOCK, IN_REGISTERS)
    values_at = values_ptr + row * columns + column
    if IN_REGISTERS > 0:
        values_at = tl.max_contiguous(values_at, [IN_REGISTERS])
    store_quantized(exact, values_at, scale_ptr + row, inside, DIVISOR, INTERPRETED)


@triton.jit
def quantize_parts(
    first_ptr,
    second_ptr,
    third_ptr,
    column_scale_ptr,
    values_ptr,
    scale_ptr,
    stride_first_row,
    stride_second_row,
    stride_third_row,
    second_begins,
    third_begins,
    columns,
    BLOCK: tl.constexpr,
    DIVISOR: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write a row that lies in three matrices side by side, times `column_scale_ptr` [C], in 8 bits.

    Args:
        first_ptr, second_ptr, third_ptr: rows of the matrices.
        second_begins, third_begins: their columns in the whole row; `columns` for one that is not there.
    """
    row, column, inside = whole_row(columns, BLOCK)
    in_first, in_third = column < second_begins, inside & (column >= third_begins)
    in_second = (column >= second_begins) & (column < third_begins)
    exact = load_row(first_ptr, row, stride_first_row, column, in_first)
    second = load_row(second_ptr, row, stride_second_row, column - second_begins, in_second)
    third = load_row(third_ptr, row, stride_third_row, column - third_begins, in_third)
    exact = tl.where(in_first, exact, tl.where(in_second, second, third))
    exact = exact * tl.load(column_scale_ptr + column, mask=inside, other=0.0).to(tl.float32)
    store_quantized(exact, values_ptr + row * columns + column, scale_ptr + row, inside, DIVISOR, INTERPRETED)


@triton.jit
def quantize_both(
    x_ptr,
    reference_ptr,
    values_ptr,
    scale_ptr,
    difference_ptr,
    difference_scale_ptr,
    signs_ptr,
    stride_x_row,
    stride_reference_row,
    columns,
    BLOCK: tl.constexpr,
    DIVISOR: tl.constexpr,
    TURN: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write a row of the reference's input in 8 bits, and the policy's, x, less the reference's.

    Args:
        values_ptr, scale_ptr: of the reference's rows.
        difference_ptr, difference_scale_ptr: of the differences, likewise.
    """
    row, column, inside = whole_row(columns, BLOCK)
    dtype = x_ptr.dtype.element_ty
    exact = load_row(reference_ptr, row, stride_reference_row, column, inside).to(dtype)
    exact = turned_row(exact, column, signs_ptr, TURN, BLOCK, IN_REGISTERS)
    change = load_row(x_ptr, row, stride_x_row, column, inside).to(dtype)
    change = turned_row(change, column, signs_ptr, TURN, BLOCK, IN_REGISTERS) - exact
    values_at, difference_at = values_ptr + row * columns + column, difference_ptr + row * columns + column
    if IN_REGISTERS > 0:
        values_at = tl.max_contiguous(values_at, [IN_REGISTERS])
        difference_at = tl.max_contiguous(difference_at, [IN_REGISTERS])
    store_quantized(exact, values_at, scale_ptr + row, inside, DIVISOR, INTERPRETED)
    store_quantized(change, difference_at, difference_scale_ptr + row, inside, DIVISOR, INTERPRETED)
