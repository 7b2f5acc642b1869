"""Triton kernels that carry the policy's difference from the reference; `reference.py` has the equations.

Arguments of the kernels, beside those described in `fp8_quantize/kernels.py`:

    reference_..., change_...    of the reference, and of what the policy's differs by: one dtype, rows of C elements
    policy_out ...               results [R, C], contiguous, that dtype
    change_values, change_scale  the difference in 8 bits, as `values_ptr` and `scale_ptr` are of the reference
    QUANTIZE                     whether rows in 8 bits are written

Arithmetic is float32. No difference is taken of two products, which a GPU may fuse with it, so that 0 stays 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.fp8_quantize.kernels import (
    LARGEST_E4M3,
    LARGEST_INT8,
    magnitude,
    rotated_row,
    row_scale,
    store_quantized,
    to_8_bits,
)
from wishbone.ops.fp8_quantize.norm_kernels import normed_row
from wishbone.ops.gated_mlp.kernels import sigmoid_of
from wishbone.ops.kernel_parts import load_row, whole_row


@triton.jit
def add(
    reference_ptr,
    change_ptr,
    other_ptr,
    other_change_ptr,
    policy_out,
    reference_out,
    change_out,
    elements,
    BLOCK: tl.constexpr,
):
    """Write the sums of BLOCK elements of two tensors; grid (elements / BLOCK,)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    dtype = policy_out.dtype.element_ty
    total = tl.load(reference_ptr + at, mask=inside).to(tl.float32)
    total += tl.load(other_ptr + at, mask=inside).to(tl.float32)
    change = tl.load(change_ptr + at, mask=inside).to(tl.float32)
    change += tl.load(other_change_ptr + at, mask=inside).to(tl.float32)
    total, change = total.to(dtype), change.to(dtype)
    tl.store(reference_out + at, total, mask=inside)
    tl.store(change_out + at, change, mask=inside)
    tl.store(policy_out + at, (total.to(tl.float32) + change.to(tl.float32)).to(dtype), mask=inside)


@triton.jit
def norm(
    reference_ptr,
    change_ptr,
    weight_ptr,
    policy_out,
    reference_out,
    change_out,
    reciprocal_rms_ptr,
    values_ptr,
    scale_ptr,
    change_values,
    change_scale,
    signs_ptr,
    stride_reference_row,
    stride_change_row,
    columns,
    eps,
    offset,
    OFFSET: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    DIVISOR: tl.constexpr,
    TURN: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write the RMSNorm of a row of policy and reference, its difference, and 1 / rms of the policy's; grid (R,).

    Args:
        weight_ptr: [C].
        reciprocal_rms_ptr: [R] float32.
        eps: added to the mean square.
        offset: if OFFSET, added to the weight.
    """
    row, column, inside = whole_row(columns, BLOCK)
    dtype = policy_out.dtype.element_ty
    at = row * columns + column
    w = tl.load(weight_ptr + column, mask=inside, other=0.0)
    base = load_row(reference_ptr, row, stride_reference_row, column, inside)
    change = load_row(change_ptr, row, stride_change_row, column, inside)
    reference, of_reference = normed_row(base, w, columns, eps, offset, OFFSET, dtype)
    policy, own = normed_row(base + change, w, columns, eps, offset, OFFSET, dtype)
    factor = w.to(tl.float32)
    if OFFSET:
        factor += offset
    moved = ((change * own + base * (own - of_reference)) * factor).to(dtype)
    tl.store(policy_out + at, policy, mask=inside)
    tl.store(reference_out + at, reference, mask=inside)
    tl.store(change_out + at, moved, mask=inside)
    tl.store(reciprocal_rms_ptr + row, own)
    if QUANTIZE:
        exact = rotated_row(tl.where(inside, reference, 0.0), signs_ptr, TURN, BLOCK)
        store_quantized(exact, values_ptr + at, scale_ptr + row, inside, DIVISOR, INTERPRETED)
        exact = rotated_row(tl.where(inside, moved, 0.0), signs_ptr, TURN, BLOCK)
        store_quantized(exact, change_values + at, change_scale + row, inside, DIVISOR, INTERPRETED)


@triton.jit
def gated(
    reference_gate_ptr,
    reference_up_ptr,
    gate_ptr,
    up_ptr,
    policy_out,
    reference_out,
    change_out,
    values_ptr,
    scale_ptr,
    change_values,
    change_scale,
    signs_ptr,
    stride_reference_gate_row,
    stride_reference_up_row,
    stride_gate_row,
    stride_up_row,
    columns,
    SILU: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    DIVISOR: tl.constexpr,
    TURN: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write a(gate) * up of a row of policy and reference and the difference, and the policy's gate and up; grid (R,).

    Rows in 8 bits need the largest element first: the row is computed twice, BLOCK columns at a time, and read from
    the cache the second time, where all results are written.

    Args:
        gate_ptr, up_ptr: differences on input, the policy's on output.
        reference_out, change_out: written if not QUANTIZE.
    """
    row = tl.program_id(0).to(tl.int64)
    dtype = gate_ptr.dtype.element_ty
    form: tl.constexpr = values_ptr.dtype.element_ty
    LARGEST: tl.constexpr = LARGEST_INT8 if form == tl.int8 else LARGEST_E4M3
    reference_gate_ptr += row * stride_reference_gate_row
    reference_up_ptr += row * stride_reference_up_row
    gate_ptr += row * stride_gate_row
    up_ptr += row * stride_up_row
    at = row * columns
    factor, change_factor = 1.0, 1.0
    if QUANTIZE:
        largest = tl.zeros((BLOCK,), tl.int32)
        change_largest = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            _, _, _, reference, change = _gated_parts(
                reference_gate_ptr, reference_up_ptr, gate_ptr, up_ptr, column, column < columns, SILU, dtype
            )
            largest = tl.maximum(largest, magnitude(rotated_row(reference, signs_ptr, TURN, BLOCK)))
            change_largest = tl.maximum(change_largest, magnitude(rotated_row(change, signs_ptr, TURN, BLOCK)))
        own_scale, factor = row_scale(tl.max(largest, axis=0), LARGEST, DIVISOR)
        tl.store(scale_ptr + row, own_scale)
        own_scale, change_factor = row_scale(tl.max(change_largest, axis=0), LARGEST, DIVISOR)
        tl.store(change_scale + row, own_scale)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        g, u, policy, reference, change = _gated_parts(
            reference_gate_ptr, reference_up_ptr, gate_ptr, up_ptr, column, inside, SILU, dtype
        )
        tl.store(gate_ptr + column, g, mask=inside)
        tl.store(up_ptr + column, u, mask=inside)
        tl.store(policy_out + at + column, policy, mask=inside)
        if QUANTIZE:
            exact = rotated_row(reference, signs_ptr, TURN, BLOCK) * factor
            tl.store(values_ptr + at + column, to_8_bits(exact, form, INTERPRETED), mask=inside)
            exact = rotated_row(change, signs_ptr, TURN, BLOCK) * change_factor
            tl.store(change_values + at + column, to_8_bits(exact, form, INTERPRETED), mask=inside)
        else:
            tl.store(reference_out + at + column, reference, mask=inside)
            tl.store(change_out + at + column, change, mask=inside)


@triton.jit
def _gated_parts(
    reference_gate_ptr, reference_up_ptr, gate_ptr, up_ptr, column, inside, SILU: tl.constexpr, dtype: tl.constexpr
):
    """Return the policy's gate and up, its product, the reference's and the difference, in `dtype`, 0 outside."""
    g = tl.load(reference_gate_ptr + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(reference_up_ptr + column, mask=inside, other=0.0).to(tl.float32)
    dg = tl.load(gate_ptr + column, mask=inside, other=0.0).to(tl.float32)
    du = tl.load(up_ptr + column, mask=inside, other=0.0).to(tl.float32)
    own_g, own_u = g + dg, u + du
    reference = g * sigmoid_of(g, SILU) * u
    policy = own_g * sigmoid_of(own_g, SILU) * own_u
    change = tl.where((dg == 0.0) & (du == 0.0), 0.0, policy - reference)
    return own_g.to(dtype), own_u.to(dtype), policy.to(dtype), reference.to(dtype), change.to(dtype)
