"""Rows to 8 bits, e4m3 or rotated int8: alone, after RMSNorm, or after SwiGLU, in one pass; and RMSNorm itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wishbone.ops.backend import Backend, runs_triton
from wishbone.ops.fp8_quantize.reference import (
    quantize_both_reference,
    quantize_rows_reference,
    rms_norm_backward_reference,
    rms_norm_quantize_both_reference,
    rms_norm_quantize_reference,
    rms_norm_reference,
    sum_rms_norm_quantize_both_reference,
    swiglu_quantize_both_reference,
    swiglu_quantize_reference,
)
from wishbone.ops.fp8_quantize.rotation import rotated_back, rotation_block
from wishbone.ops.fp8_quantize.rows import (
    E4M3,
    E4M3_ROWS,
    INT8_ROWS,
    LockstepRows,
    QuantizedRows,
    RowForm,
    rotated_int8,
)

__all__ = [
    "E4M3",
    "E4M3_ROWS",
    "INT8_ROWS",
    "LockstepRows",
    "QuantizedRows",
    "RowForm",
    "quantize_both",
    "quantize_rows",
    "quantize_side_by_side",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_quantize",
    "rms_norm_quantize_both",
    "rotated_back",
    "rotated_int8",
    "rotation_block",
    "sum_rms_norm_quantize_both",
    "swiglu_quantize",
    "swiglu_quantize_both",
]


def quantize_rows(
    x: Tensor, column_scale: Tensor | None = None, *, form: RowForm = E4M3_ROWS, backend: Backend = "auto"
) -> QuantizedRows:
    """Return x, or x * column_scale, in 8 bits with one scale a row.

    Args:
        x: [rows, columns], float16, bfloat16, float32 or float64.
        column_scale: [columns], float32, or None.
        form: e4m3, or int8 after rotating blocks of columns.
        backend: "triton" or "reference" by name, or "auto": triton on CUDA, reference elsewhere.

    Returns:
        scale = max |row| / 448 and values = round(x * (448 / max |row|)), to the nearest, ties to even; in int8 the row
        is rotated first, 127 stands for 448, and the scale is divided by sqrt(form.block). A row with NaN or infinity
        has a scale that is not finite, so no product with it is finite.

    Raises:
        ValueError: the backend is unknown.
    """
    if runs_triton(backend, auto=x.is_cuda):
        from wishbone.ops.fp8_quantize.triton import quantize_rows_triton

        return quantize_rows_triton(x, column_scale, form)
    return quantize_rows_reference(x, column_scale, form=form)


def quantize_side_by_side(
    parts: Sequence[Tensor], column_scale: Tensor, *, form: RowForm = E4M3_ROWS, backend: Backend = "auto"
) -> QuantizedRows:
    """Return `quantize_rows` of matrices that lie side by side, without laying them so.

    Args:
        parts: [rows, columns_i], of one dtype.
        column_scale: [sum of columns_i], float32.
        form: of rows that are not rotated.
        backend: as for `quantize_rows`.
    """
    if runs_triton(backend, auto=parts[0].is_cuda):
        from wishbone.ops.fp8_quantize.triton import quantize_side_by_side_triton

        return quantize_side_by_side_triton(parts, column_scale, form)
    return quantize_rows_reference(torch.cat(list(parts), 1), column_scale, form=form)


def quantize_both(
    x: Tensor, reference: Tensor, *, form: RowForm = E4M3_ROWS, backend: Backend = "auto"
) -> LockstepRows:
    """Return rows of the reference in 8 bits, and what those of the policy, x, differ from them by, in one pass.

    Args:
        x, reference: [rows, columns], of one dtype.
        form, backend: as for `quantize_rows`.

    Returns:
        `quantize_rows` of the reference, and of x - reference, which is formed in float32.
    """
    if runs_triton(backend, auto=x.is_cuda):
        from wishbone.ops.fp8_quantize.triton import quantize_both_triton

        return quantize_both_triton(x, reference, form)
    return quantize_both_reference(x, reference, form=form)


def rms_norm_quantize(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    form: RowForm = E4M3_ROWS,
    backend: Backend = "auto",
) -> tuple[Tensor, QuantizedRows, Tensor]:
    """Return RMSNorm of x, the same in 8 bits, and 1 / rms of each row, in one pass over x.

    Args:
        x: [rows, columns].
        weight: [columns].
        eps: added to the mean square.
        offset: added to the weight (Gemma: 1). If it is not 0, the product with the weight is not rounded on the way.
        form, backend: as for `quantize_rows`.

    Returns:
        normed [rows, columns] in the dtype of x; its rows in 8 bits, `quantize_rows(normed)`; reciprocal rms
        [rows], float32.
    """
    if runs_triton(backend, auto=x.is_cuda):
        from wishbone.ops.fp8_quantize.norm_triton import rms_norm_quantize_triton

        return rms_norm_quantize_triton(x, weight, eps, offset=offset, form=form)
    return rms_norm_quantize_reference(x, weight, eps, offset=offset, form=form)


def rms_norm_quantize_both(
    x: Tensor,
    reference: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    form: RowForm = E4M3_ROWS,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, LockstepRows, Tensor]:
    """Return RMSNorm of the policy's x and of the reference's, and their rows in 8 bits, in one pass.

    Args:
        x, reference: [rows, columns], of one dtype.
        weight, eps, offset, form, backend: as for `rms_norm_quantize`.

    Returns:
        normed and the reference's normed [rows, columns] in the dtype of x; `quantize_both` of them; reciprocal rms of
        x [rows], float32.
    """
    if runs_triton(backend, auto=x.is_cuda):
        from wishbone.ops.fp8_quantize.norm_triton import rms_norm_quantize_both_triton

        return rms_norm_quantize_both_triton(x, reference, weight, eps, offset=offset, form=form)
    return rms_norm_quantize_both_reference(x, reference, weight, eps, offset=offset, form=form)


def sum_rms_norm_quantize_both(
    x: Tensor,
    added: Tensor,
    reference: Tensor,
    reference_added: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    form: RowForm = E4M3_ROWS,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, LockstepRows, Tensor]:
    """Return the sums x + added and reference + reference_added, and RMSNorm of them, in one pass.

    Args:
        x, added, reference, reference_added: [rows, columns], of one dtype.
        weight, eps, offset, form, backend: as for `rms_norm_quantize`.

    Returns:
        The sums in the dtype of x, as PyTorch adds, and what `rms_norm_quantize_both` returns of them, bit by bit.
    """
    if runs_triton(backend, auto=x.is_cuda):
        from wishbone.ops.fp8_quantize.norm_triton import sum_rms_norm_quantize_both_triton

        return sum_rms_norm_quantize_both_triton(
            x, added, reference, reference_added, weight, eps, offset=offset, form=form
        )
    return sum_rms_norm_quantize_both_reference(
        x, added, reference, reference_added, weight, eps, offset=offset, form=form
    )


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Return RMSNorm of x and 1 / rms of each row; arguments and results as `rms_norm_quantize`."""
    if runs_triton(backend, auto=x.is_cuda):
        from wishbone.ops.fp8_quantize.norm_triton import rms_norm_triton

        return rms_norm_triton(x, weight, eps, offset=offset)
    return rms_norm_reference(x, weight, eps, offset=offset)


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    reciprocal_rms: Tensor,
    *,
    offset: float = 0.0,
    beside: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Return the gradient of x [rows, columns] from that of its RMSNorm, for a weight that is not trained.

    Args:
        grad: of the RMSNorm, [rows, columns].
        x, weight, offset, backend: as for `rms_norm`.
        reciprocal_rms: what `rms_norm` returned.
        beside: another gradient of x, which is added: rounded to 16 bits as a sum of two tensors is.
    """
    if runs_triton(backend, auto=x.is_cuda):
        from wishbone.ops.fp8_quantize.norm_triton import rms_norm_backward_triton

        return rms_norm_backward_triton(grad, x, weight, reciprocal_rms, offset=offset, beside=beside)
    return rms_norm_backward_reference(grad, x, weight, reciprocal_rms, offset=offset, beside=beside)


def swiglu_quantize(
    gate: Tensor, up: Tensor, *, keep: bool = True, form: RowForm = E4M3_ROWS, backend: Backend = "auto"
) -> tuple[Tensor | None, QuantizedRows]:
    """Return silu(gate) * up and the same in 8 bits, in one pass.

    Args:
        gate, up: [rows, columns], of one dtype.
        keep: whether to return the product itself, too.
        form, backend: as for `quantize_rows`.

    Returns:
        product [rows, columns] in the dtype of gate, or None; its rows in 8 bits, `quantize_rows(product)`.
    """
    if runs_triton(backend, auto=gate.is_cuda):
        from wishbone.ops.fp8_quantize.triton import swiglu_quantize_triton

        return swiglu_quantize_triton(gate, up, keep=keep, form=form)
    return swiglu_quantize_reference(gate, up, keep=keep, form=form)


def swiglu_quantize_both(
    gate: Tensor,
    up: Tensor,
    reference_gate: Tensor,
    reference_up: Tensor,
    *,
    keep: bool = True,
    form: RowForm = E4M3_ROWS,
    backend: Backend = "auto",
) -> tuple[Tensor | None, LockstepRows]:
    """Return the policy's silu(gate) * up, and the rows in 8 bits of policy and reference, in one pass.

    Args:
        gate, up: [rows, columns], of one dtype.
        reference_gate, reference_up: likewise.
        keep: whether to return the policy's product.
        form, backend: as for `quantize_rows`.

    Returns:
        product p [rows, columns] in the dtype of gate, or None; `quantize_both(p, r)` with r the reference's product,
        rounded to that dtype.
    """
    if runs_triton(backend, auto=gate.is_cuda):
        from wishbone.ops.fp8_quantize.triton import swiglu_quantize_both_triton

        return swiglu_quantize_both_triton(gate, up, reference_gate, reference_up, keep=keep, form=form)
    return swiglu_quantize_both_reference(gate, up, reference_gate, reference_up, keep=keep, form=form)
