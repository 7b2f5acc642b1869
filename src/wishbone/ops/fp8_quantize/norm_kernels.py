"""RMSNorm of rows and its gradient, and the normed rows in 8 bits: one program a row.

The grid and the arguments of all kernels are described in `kernels.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.fp8_quantize.kernels import store_quantized, turned_row
from wishbone.ops.kernel_parts import load_row, whole_row


@triton.jit
def norm(
    x_ptr,
    weight_ptr,
    normed_ptr,
    reciprocal_rms_ptr,
    values_ptr,
    scale_ptr,
    signs_ptr,
    stride_x_row,
    columns,
    eps,
    offset,
    OFFSET: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    DIVISOR: tl.constexpr,
    TURN: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write the RMSNorm of a row of x and its 1 / rms; if QUANTIZE, the normed row in 8 bits, too.

    The normed row is the same bit by bit whether it is quantized or not. Sums depend on their order, and that on how
    many columns a thread holds: as many as fill the widest access, 16 bytes, which are 16 elements of 8 bits. So no
    more elements of 8 bits are stored at once than there are elements of x in 16 bytes (VECTOR).

    Args:
        weight_ptr: [C].
        normed_ptr: [R, C], contiguous, the dtype of x.
        reciprocal_rms_ptr: [R] float32.
        eps: added to the mean square.
        offset: if OFFSET, added to the weight, and the product is not rounded on the way.
    """
    row, column, inside = whole_row(columns, BLOCK)
    exact = load_row(x_ptr, row, stride_x_row, column, inside)
    w = tl.load(weight_ptr + column, mask=inside, other=0.0)
    result, reciprocal = normed_row(exact, w, columns, eps, offset, OFFSET, normed_ptr.dtype.element_ty)
    tl.store(normed_ptr + row * columns + column, result, mask=inside)
    tl.store(reciprocal_rms_ptr + row, reciprocal)
    if QUANTIZE:
        rounded = turned_row(tl.where(inside, result, 0.0), column, signs_ptr, TURN, BLOCK, IN_REGISTERS)
        VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
        target = tl.max_contiguous(values_ptr + row * columns + column, [VECTOR])
        store_quantized(rounded, target, scale_ptr + row, inside, DIVISOR, INTERPRETED)


@triton.jit
def normed_row(exact, w, columns, eps, offset, OFFSET: tl.constexpr, dtype: tl.constexpr):
    """Return the RMSNorm of a row, in `dtype`, and its 1 / rms."""
    mean_square = tl.sum(exact * exact, axis=0) / columns
    reciprocal = tl.div_rn(1.0, tl.sqrt_rn(mean_square + eps))
    unit = exact * reciprocal
    if OFFSET:
        result = (unit * (offset + w.to(tl.float32))).to(dtype)
    else:
        result = (unit.to(dtype).to(tl.float32) * w.to(dtype).to(tl.float32)).to(dtype)
    return result, reciprocal


@triton.jit
def norm_both(
    x_ptr,
    reference_ptr,
    weight_ptr,
    normed_ptr,
    reference_normed_ptr,
    reciprocal_rms_ptr,
    values_ptr,
    scale_ptr,
    difference_ptr,
    difference_scale_ptr,
    signs_ptr,
    added_ptr,
    reference_added_ptr,
    total_ptr,
    reference_total_ptr,
    stride_x_row,
    stride_reference_row,
    stride_added_row,
    stride_reference_added_row,
    columns,
    eps,
    offset,
    OFFSET: tl.constexpr,
    ADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    DIVISOR: tl.constexpr,
    TURN: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write the RMSNorm of a row of the policy, x, and of the reference; the latter in 8 bits, too, and the difference.

    If ADDED, a row is added to each before, and the sums are written and normed, rounded to their dtype.

    Args:
        added_ptr, reference_added_ptr: what is added, the dtype of x; not read without ADDED.
        total_ptr, reference_total_ptr: [R, C], contiguous, the sums.
        normed_ptr, reference_normed_ptr: [R, C], contiguous, the dtype of x.
        reciprocal_rms_ptr: [R] float32, of the policy's rows.
        values_ptr, scale_ptr, difference_ptr, difference_scale_ptr: as `quantize_both`; other arguments as `norm`.
    """
    row, column, inside = whole_row(columns, BLOCK)
    dtype = normed_ptr.dtype.element_ty
    values_at, difference_at = values_ptr + row * columns + column, difference_ptr + row * columns + column
    if IN_REGISTERS > 0:
        values_at = tl.max_contiguous(values_at, [IN_REGISTERS])
        difference_at = tl.max_contiguous(difference_at, [IN_REGISTERS])
    w = tl.load(weight_ptr + column, mask=inside, other=0.0)
    exact = load_row(reference_ptr, row, stride_reference_row, column, inside)
    if ADDED:
        exact += load_row(reference_added_ptr, row, stride_reference_added_row, column, inside)
        tl.store(reference_total_ptr + row * columns + column, exact.to(dtype), mask=inside)
        exact = exact.to(dtype).to(tl.float32)
    normed, _ = normed_row(exact, w, columns, eps, offset, OFFSET, dtype)
    tl.store(reference_normed_ptr + row * columns + column, normed, mask=inside)
    reference = turned_row(tl.where(inside, normed, 0.0), column, signs_ptr, TURN, BLOCK, IN_REGISTERS)
    store_quantized(reference, values_at, scale_ptr + row, inside, DIVISOR, INTERPRETED)
    exact = load_row(x_ptr, row, stride_x_row, column, inside)
    if ADDED:
        exact += load_row(added_ptr, row, stride_added_row, column, inside)
        tl.store(total_ptr + row * columns + column, exact.to(dtype), mask=inside)
        exact = exact.to(dtype).to(tl.float32)
    normed, reciprocal = normed_row(exact, w, columns, eps, offset, OFFSET, dtype)
    tl.store(normed_ptr + row * columns + column, normed, mask=inside)
    tl.store(reciprocal_rms_ptr + row, reciprocal)
    change = turned_row(tl.where(inside, normed, 0.0), column, signs_ptr, TURN, BLOCK, IN_REGISTERS) - reference
    store_quantized(change, difference_at, difference_scale_ptr + row, inside, DIVISOR, INTERPRETED)


@triton.jit
def norm_gradient(
    do_ptr,
    x_ptr,
    weight_ptr,
    reciprocal_rms_ptr,
    beside_ptr,
    dx_ptr,
    stride_do_row,
    stride_x_row,
    stride_beside_row,
    columns,
    offset,
    BESIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of a row of x [R, C], contiguous, from that of its RMSNorm; other arguments as `norm`.

    If BESIDE, a row of x's gradient from elsewhere is added, rounded as if it were added to what is written without.
    """
    row, column, inside = whole_row(columns, BLOCK)
    reciprocal = tl.load(reciprocal_rms_ptr + row)
    unit = load_row(x_ptr, row, stride_x_row, column, inside) * reciprocal
    do = load_row(do_ptr, row, stride_do_row, column, inside)
    weighted = do * (offset + tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32))
    mean = tl.sum(weighted * unit, axis=0) / columns
    result = (reciprocal * (weighted - unit * mean)).to(dx_ptr.dtype.element_ty)
    if BESIDE:
        beside = load_row(beside_ptr, row, stride_beside_row, column, inside)
        result = (result.to(tl.float32) + beside).to(dx_ptr.dtype.element_ty)
    tl.store(dx_ptr + row * columns + column, result, mask=inside)
