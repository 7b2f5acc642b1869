"""RMSNorm in Triton, its gradient, and its rows in 8 bits; with the sum before it and the gradients that meet there."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from wishbone.ops.fp8_quantize.norm_kernels import norm, norm_both, norm_gradient
from wishbone.ops.fp8_quantize.register_rotation import elements_in_registers
from wishbone.ops.fp8_quantize.rows import E4M3_ROWS, LockstepRows, QuantizedRows, RowForm
from wishbone.ops.fp8_quantize.triton import dense_rows, empty_rows, row_block, signs_of


def rms_norm_quantize_both_triton(
    x: Tensor, reference: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0, form: RowForm = E4M3_ROWS
) -> tuple[Tensor, Tensor, LockstepRows, Tensor]:
    """Return RMSNorm of both, their rows in 8 bits, and 1 / rms of each row of x; as `rms_norm_quantize_both`."""
    return _rms_norm_both((x, reference), None, weight, eps, offset, form)[1:]


def sum_rms_norm_quantize_both_triton(
    x: Tensor,
    added: Tensor,
    reference: Tensor,
    reference_added: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    form: RowForm = E4M3_ROWS,
) -> tuple[Tensor, Tensor, Tensor, Tensor, LockstepRows, Tensor]:
    """Return both sums, and `rms_norm_quantize_both_triton` of them; as `sum_rms_norm_quantize_both`."""
    totals, normed, other, rows, reciprocal_rms = _rms_norm_both(
        (x, reference), (added, reference_added), weight, eps, offset, form
    )
    return *totals, normed, other, rows, reciprocal_rms


def _rms_norm_both(
    halves: tuple[Tensor, Tensor],
    added: tuple[Tensor, Tensor] | None,
    weight: Tensor,
    eps: float,
    offset: float,
    form: RowForm,
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, LockstepRows, Tensor]:
    """Return the halves with what is `added` to them, and what `rms_norm_quantize_both` returns of these."""
    x, reference = map(dense_rows, halves)
    own, others = map(dense_rows, halves if added is None else added)
    out = LockstepRows(empty_rows(x, form), empty_rows(x, form))
    normed, reference_normed, *totals = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2 if added is None else 4)
    )
    total, reference_total = totals or (x, reference)
    reciprocal_rms = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    if x.shape[0]:
        block, warps = row_block(x.shape[1])
        norm_both[(x.shape[0],)](
            x,
            reference,
            weight.contiguous(),
            normed,
            reference_normed,
            reciprocal_rms,
            out.reference.values,
            out.reference.scale,
            out.difference.values,
            out.difference.scale,
            signs_of(x, form),
            own,
            others,
            total,
            reference_total,
            x.stride(0),
            reference.stride(0),
            own.stride(0),
            others.stride(0),
            x.shape[1],
            eps,
            offset,
            DIVISOR=form.scale_divisor,
            TURN=form.block,
            IN_REGISTERS=elements_in_registers(x.shape[1], block, form.block, warps, x, reference),
            OFFSET=offset != 0,
            ADDED=added is not None,
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=warps,
        )
    return (total, reference_total), normed, reference_normed, out, reciprocal_rms


def rms_norm_quantize_triton(
    x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0, form: RowForm = E4M3_ROWS
) -> tuple[Tensor, QuantizedRows, Tensor]:
    """Return RMSNorm of x, the same in 8 bits, and 1 / rms of each row; as `rms_norm_quantize`."""
    out = empty_rows(x, form)
    normed, reciprocal_rms = _rms_norm(x, weight, eps, offset, out, form)
    return normed, out, reciprocal_rms


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return RMSNorm of x and 1 / rms of each row; as `rms_norm`."""
    return _rms_norm(x, weight, eps, offset, None)


def rms_norm_backward_triton(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    reciprocal_rms: Tensor,
    *,
    offset: float = 0.0,
    beside: Tensor | None = None,
) -> Tensor:
    """Return the gradient of x from that of its RMSNorm; as `rms_norm_backward`."""
    x, grad = dense_rows(x), dense_rows(grad)
    other = grad if beside is None else dense_rows(beside)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.shape[0]:
        block, warps = row_block(x.shape[1])
        norm_gradient[(x.shape[0],)](
            grad,
            x,
            weight.contiguous(),
            reciprocal_rms,
            other,
            out,
            grad.stride(0),
            x.stride(0),
            other.stride(0),
            x.shape[1],
            offset,
            BESIDE=beside is not None,
            BLOCK=block,
            num_warps=warps,
        )
    return out


def _rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float, quantized: QuantizedRows | None, form: RowForm = E4M3_ROWS
) -> tuple[Tensor, Tensor]:
    x = dense_rows(x)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    reciprocal_rms = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    if x.shape[0]:
        block, warps = row_block(x.shape[1])
        norm[(x.shape[0],)](
            x,
            weight.contiguous(),
            normed,
            reciprocal_rms,
            normed if quantized is None else quantized.values,
            reciprocal_rms if quantized is None else quantized.scale,
            signs_of(x, form),
            x.stride(0),
            x.shape[1],
            eps,
            offset,
            DIVISOR=form.scale_divisor,
            TURN=form.block,
            IN_REGISTERS=elements_in_registers(x.shape[1], block, form.block, warps, x, wanted=8),
            OFFSET=offset != 0,
            QUANTIZE=quantized is not None,
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=warps,
        )
    return normed, reciprocal_rms
