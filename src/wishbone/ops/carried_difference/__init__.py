"""The difference of policy and reference through sums, RMSNorm and gated MLPs: one op each, definition and kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from wishbone.ops.backend import Backend, runs_triton
from wishbone.ops.carried_difference.reference import (
    gated_product_reference,
    quantized_in_lockstep,
    rms_norm_reference,
    sum_reference,
)
from wishbone.ops.carried_difference.rows import GatedProduct, PolicyAndReference
from wishbone.ops.fp8_quantize import LockstepRows, RowForm

__all__ = [
    "GatedProduct",
    "PolicyAndReference",
    "gated_product_in_lockstep_",
    "quantized_in_lockstep",
    "rms_norm_in_lockstep",
    "sum_in_lockstep",
]


def sum_in_lockstep(
    reference: Tensor, difference: Tensor, other: Tensor, other_difference: Tensor, *, backend: Backend = "auto"
) -> PolicyAndReference:
    """Return the sum of two tensors, each given by the reference's and by what the policy's differs by.

    Args:
        reference, difference, other, other_difference: of one shape and dtype.
        backend: "triton" or "reference" by name, or "auto": triton on CUDA, except for float64, reference elsewhere.

    Raises:
        ValueError: the backend is unknown.
    """
    if _by_triton(reference, backend):
        from wishbone.ops.carried_difference.triton import sum_triton

        return sum_triton(reference, difference, other, other_difference)
    return sum_reference(reference, difference, other, other_difference)


def rms_norm_in_lockstep(
    reference: Tensor,
    difference: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    form: RowForm | None = None,
    backend: Backend = "auto",
) -> tuple[PolicyAndReference, LockstepRows | None, Tensor]:
    """Return RMSNorm of policy and reference, 8-bit rows of reference and difference, and 1 / rms of the policy's rows.

    Args:
        reference, difference: [rows, columns], of one dtype.
        weight: [columns].
        eps: added to the mean square.
        offset: added to the weight.
        form: of the rows in 8 bits, which are then made in the same pass.
        backend: as for `sum_in_lockstep`.
    """
    if _by_triton(reference, backend):
        from wishbone.ops.carried_difference.triton import rms_norm_triton

        return rms_norm_triton(reference, difference, weight, eps, offset=offset, form=form)
    return rms_norm_reference(reference, difference, weight, eps, offset=offset, form=form)


def gated_product_in_lockstep_(
    reference_gate: Tensor,
    reference_up: Tensor,
    gate: Tensor,
    up: Tensor,
    *,
    silu: bool = True,
    form: RowForm | None = None,
    backend: Backend = "auto",
) -> GatedProduct:
    """Return a(gate) * up of policy and reference; the differences are overwritten by the policy's gate and up.

    Args:
        reference_gate, reference_up: [rows, columns], the reference's.
        gate, up: [rows, columns], what the policy's differ by on input, the policy's, rounded, on output.
        silu: whether a is SiLU, otherwise the tanh approximation of GELU.
        form: of 8-bit rows, which are made instead of the reference's product and its difference.
        backend: as for `sum_in_lockstep`.
    """
    if _by_triton(gate, backend):
        from wishbone.ops.carried_difference.triton import gated_product_triton

        return gated_product_triton(reference_gate, reference_up, gate, up, silu=silu, form=form)
    return gated_product_reference(reference_gate, reference_up, gate, up, silu=silu, form=form)


def _by_triton(x: Tensor, backend: Backend) -> bool:
    return runs_triton(backend, auto=x.is_cuda and x.dtype != torch.float64)
