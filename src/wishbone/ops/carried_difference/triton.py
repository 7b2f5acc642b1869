"""The carried difference in Triton: one pass over memory each; `kernels.py` has the kernels.

Beyond what policy and reference need anyway, an element of a sum, of a norm or of a gated product costs one more write.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from wishbone.ops.carried_difference.kernels import add, gated, norm
from wishbone.ops.carried_difference.rows import GatedProduct, PolicyAndReference
from wishbone.ops.fp8_quantize import E4M3_ROWS, LockstepRows, RowForm
from wishbone.ops.fp8_quantize.triton import dense_rows, empty_rows, row_block, signs_of
from wishbone.ops.launch_sizes import power_of_two, tiles

ADDED, ADDING_WARPS = 2048, 4
"""Elements of a sum that a program takes, and its warps."""
GATED, COLUMNS_A_WARP = 4096, 256
"""Columns of a gated product at a time, and columns of a warp; half as many of each where they are rotated."""


def sum_triton(reference: Tensor, difference: Tensor, other: Tensor, other_difference: Tensor) -> PolicyAndReference:
    """Return the sum of two tensors of policy and reference; as `sum_in_lockstep`."""
    parts = [x.contiguous() for x in (reference, difference, other, other_difference)]
    policy, total, change = (torch.empty_like(parts[0]) for _ in range(3))
    if elements := policy.numel():
        add[(tiles(elements, ADDED),)](*parts, policy, total, change, elements, BLOCK=ADDED, num_warps=ADDING_WARPS)
    return PolicyAndReference(policy, total, change)


def rms_norm_triton(
    reference: Tensor, difference: Tensor, weight: Tensor, eps: float, *, offset: float, form: RowForm | None
) -> tuple[PolicyAndReference, LockstepRows | None, Tensor]:
    """Return RMSNorm of policy and reference, 8-bit rows and the policy's 1 / rms; as `rms_norm_in_lockstep`."""
    reference, difference = dense_rows(reference), dense_rows(difference)
    shape, dtype, device = reference.shape, reference.dtype, reference.device
    both = PolicyAndReference(*(torch.empty(shape, dtype=dtype, device=device) for _ in range(3)))
    reciprocal_rms = torch.empty(shape[0], dtype=torch.float32, device=device)
    rows = None if form is None else LockstepRows(empty_rows(reference, form), empty_rows(reference, form))
    some = form or E4M3_ROWS
    if shape[0]:
        block, warps = row_block(shape[1])
        norm[(shape[0],)](
            reference,
            difference,
            weight.contiguous(),
            *both,
            reciprocal_rms,
            *_row_pointers(rows, both.policy),
            signs_of(reference, some),
            reference.stride(0),
            difference.stride(0),
            shape[1],
            eps,
            offset,
            OFFSET=offset != 0,
            QUANTIZE=form is not None,
            BLOCK=block,
            DIVISOR=some.scale_divisor,
            TURN=some.block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=warps,
        )
    return both, rows, reciprocal_rms


def gated_product_triton(
    reference_gate: Tensor,
    reference_up: Tensor,
    gate: Tensor,
    up: Tensor,
    *,
    silu: bool,
    form: RowForm | None,
) -> GatedProduct:
    """Return a(gate) * up of policy and reference and overwrite the differences; as `gated_product_in_lockstep_`."""
    reference_gate, reference_up = dense_rows(reference_gate), dense_rows(reference_up)
    assert gate.stride(1) == up.stride(1) == 1
    shape, dtype, device = gate.shape, gate.dtype, gate.device

    policy = torch.empty(shape, dtype=dtype, device=device)
    reference, difference = (torch.empty_like(policy) if form is None else None for _ in range(2))
    rows = None if form is None else LockstepRows(empty_rows(gate, form), empty_rows(gate, form))
    some = form or E4M3_ROWS
    if shape[0]:
        block = min(GATED // 2 if some.block else GATED, power_of_two(shape[1]))
        gated[(shape[0],)](
            reference_gate,
            reference_up,
            gate,
            up,
            *(gate if x is None else x for x in (policy, reference, difference)),
            *_row_pointers(rows, gate),
            signs_of(gate, some),
            reference_gate.stride(0),
            reference_up.stride(0),
            gate.stride(0),
            up.stride(0),
            shape[1],
            SILU=silu,
            QUANTIZE=form is not None,
            BLOCK=block,
            DIVISOR=some.scale_divisor,
            TURN=some.block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=max(1, block // (COLUMNS_A_WARP // 2 if some.block else COLUMNS_A_WARP)),
            num_stages=1,
        )
    return GatedProduct(policy, reference, difference, rows)


def _row_pointers(rows: LockstepRows | None, any_tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the kernels' arguments `values_ptr`, `scale_ptr`, `change_values` and `change_scale`."""
    if rows is None:
        return (any_tensor,) * 4
    return rows.reference.values, rows.reference.scale, rows.difference.values, rows.difference.scale
