r"""Rows in 8 bits: the definition.

With c the column scale, or 1, and m_t = max_k |x_tk c_k|, kept above 2^-100,

    scale_t = m_t / 448        values_tk = e4m3( x_tk c_k (448 / m_t) )        x_tk c_k ~ scale_t values_tk

computed in float32. e4m3 has 3 bits of mantissa, its largest value is 448, its smallest normal value 2^-6 and its
smallest value 2^-9. So elements of a row down to 1 / 28672 of the largest have a relative error of at most 1/16,
smaller ones an absolute error. Rounding is to the nearest, ties to even (Micikevicius et al. 2022, "FP8 Formats for
Deep Learning", arXiv:2209.05433, table 1).

In int8 a row is rotated first, z = H x c in blocks of B columns (`rotation.py`), with m_t = max_k |z_tk|:

    scale_t = m_t / (127 sqrt(B))      values_tk = round( z_tk (127 / m_t) )

Each element then has an absolute error of at most m_t / 254. Gradients are not rotated (B = 1).

The result of a norm or an activation is rounded to the dtype of its input first, so that one step and two give the same
rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.fp8_quantize.rotation import rotated
from wishbone.ops.fp8_quantize.rows import E4M3_ROWS, SMALLEST_AMAX, LockstepRows, QuantizedRows, RowForm


def quantize_rows_reference(
    x: Tensor, column_scale: Tensor | None = None, *, form: RowForm = E4M3_ROWS
) -> QuantizedRows:
    """Return x, or x * column_scale, in 8 bits with one scale a row; as `quantize_rows`."""
    exact = x.float() if column_scale is None else x.float() * column_scale.float()
    if form.block:
        exact = rotated(exact, form.block)
    amax = exact.abs().amax(-1, keepdim=True).clamp_min(SMALLEST_AMAX)
    limit = torch.full_like(amax, form.largest)  # a quotient with a number would be a product with its reciprocal
    scaled = (exact * (limit / amax)).clamp(-form.largest, form.largest)
    if not form.dtype.is_floating_point:
        scaled = scaled.round().nan_to_num(0.0)
    return QuantizedRows(scaled.to(form.dtype), amax / torch.full_like(amax, form.scale_divisor), x.dtype)


def quantize_both_reference(x: Tensor, reference: Tensor, *, form: RowForm = E4M3_ROWS) -> LockstepRows:
    """Return the reference's rows in 8 bits and the difference of x; as `quantize_both`."""
    precise = torch.promote_types(x.dtype, torch.float32)
    values, scale, _ = quantize_rows_reference(x.to(precise) - reference.to(precise), form=form)
    return LockstepRows(quantize_rows_reference(reference, form=form), QuantizedRows(values, scale, x.dtype))


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return RMSNorm of x and 1 / rms of each row; as `rms_norm`."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    reciprocal_rms = torch.rsqrt(precise.square().mean(-1) + eps)
    unit = precise * reciprocal_rms[:, None]
    if offset:
        return (unit * (offset + weight.to(precise.dtype))).to(x.dtype), reciprocal_rms.float()
    return weight.to(x.dtype) * unit.to(x.dtype), reciprocal_rms.float()


def rms_norm_backward_reference(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    reciprocal_rms: Tensor,
    *,
    offset: float = 0.0,
    beside: Tensor | None = None,
) -> Tensor:
    """Return dx = r (h - u mean(h u)) with r = 1 / rms, u = r x and h = grad * (offset + weight), plus `beside`."""
    precise = torch.promote_types(x.dtype, torch.float32)
    reciprocal = reciprocal_rms.to(precise)[:, None]
    unit = x.to(precise) * reciprocal
    weighted = grad.to(precise) * (offset + weight.to(precise))
    dx = (reciprocal * (weighted - unit * (weighted * unit).mean(-1, keepdim=True))).to(x.dtype)
    return dx if beside is None else dx + beside


def rms_norm_quantize_reference(
    x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0, form: RowForm = E4M3_ROWS
) -> tuple[Tensor, QuantizedRows, Tensor]:
    """Return RMSNorm of x, the same in 8 bits, and 1 / rms of each row; as `rms_norm_quantize`."""
    normed, reciprocal_rms = rms_norm_reference(x, weight, eps, offset=offset)
    return normed, quantize_rows_reference(normed, form=form), reciprocal_rms


def rms_norm_quantize_both_reference(
    x: Tensor, reference: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0, form: RowForm = E4M3_ROWS
) -> tuple[Tensor, Tensor, LockstepRows, Tensor]:
    """Return RMSNorm of both, their rows in 8 bits, and 1 / rms of each row of x; as `rms_norm_quantize_both`."""
    normed, reciprocal_rms = rms_norm_reference(x, weight, eps, offset=offset)
    reference_normed, _ = rms_norm_reference(reference, weight, eps, offset=offset)
    rows = quantize_both_reference(normed, reference_normed, form=form)
    return normed, reference_normed, rows, reciprocal_rms


def sum_rms_norm_quantize_both_reference(
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
    """Return both sums, and RMSNorm of them with its rows in 8 bits; as `sum_rms_norm_quantize_both`."""
    total, reference_total = x + added, reference + reference_added
    normed = rms_norm_quantize_both_reference(total, reference_total, weight, eps, offset=offset, form=form)
    return total, reference_total, *normed


def swiglu_quantize_both_reference(
    gate: Tensor,
    up: Tensor,
    reference_gate: Tensor,
    reference_up: Tensor,
    *,
    keep: bool = True,
    form: RowForm = E4M3_ROWS,
) -> tuple[Tensor | None, LockstepRows]:
    """Return silu(gate) * up, the reference's in 8 bits, and their difference; as `swiglu_quantize_both`."""
    product, _ = swiglu_quantize_reference(gate, up)
    reference, _ = swiglu_quantize_reference(reference_gate, reference_up)
    assert product is not None and reference is not None
    return product if keep else None, quantize_both_reference(product, reference, form=form)


def swiglu_quantize_reference(
    gate: Tensor, up: Tensor, *, keep: bool = True, form: RowForm = E4M3_ROWS
) -> tuple[Tensor | None, QuantizedRows]:
    """Return silu(gate) * up and the same in 8 bits; as `swiglu_quantize`."""
    precise = torch.promote_types(gate.dtype, torch.float32)
    product = (F.silu(gate.to(precise)) * up).to(gate.dtype)
    return product if keep else None, quantize_rows_reference(product, form=form)
