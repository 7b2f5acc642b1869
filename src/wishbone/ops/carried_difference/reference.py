r"""What the policy differs by, carried through the parts of a layer between its products: the definition.

A tensor in 16 bits is rounded at each step, so the difference of two such tensors is mostly rounding where an adapter
adds little. Carried as a tensor d = x - x_ref, it has the relative error of 16 bits itself, and x is formed from it
where x is needed, in float32 and unrounded:

    sum          d = d_1 + d_2
    RMSNorm      d = n(x_ref + d) - n(x_ref) = ( d r + x_ref (r - r_ref) ) (offset + w),      r = 1 / rms
    gated MLP    d = a(g_ref + d_g) (u_ref + d_u) - a(g_ref) u_ref

In this form no difference of rounded numbers is left, and d = 0 stays 0, bit by bit. Results are computed in float32
(float64 for float64) and rounded once; those of the reference are what it has by itself. 8-bit rows are
`quantize_rows` of the rounded reference and of the rounded difference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.carried_difference.rows import GatedProduct, PolicyAndReference
from wishbone.ops.fp8_quantize import LockstepRows, RowForm, quantize_rows


def sum_reference(reference: Tensor, difference: Tensor, other: Tensor, other_difference: Tensor) -> PolicyAndReference:
    """Return the sum of two tensors of policy and reference; as `sum_in_lockstep`."""
    total, change = reference + other, difference + other_difference
    return PolicyAndReference(total + change, total, change)


def rms_norm_reference(
    reference: Tensor, difference: Tensor, weight: Tensor, eps: float, *, offset: float, form: RowForm | None
) -> tuple[PolicyAndReference, LockstepRows | None, Tensor]:
    """Return RMSNorm of policy and reference, 8-bit rows and the policy's 1 / rms; as `rms_norm_in_lockstep`."""
    precise = torch.promote_types(reference.dtype, torch.float32)
    base, change = reference.to(precise), difference.to(precise)
    r = torch.rsqrt((base + change).square().mean(-1, keepdim=True) + eps)
    r_reference = torch.rsqrt(base.square().mean(-1, keepdim=True) + eps)

    def normed(unit: Tensor) -> Tensor:
        if offset:
            return (unit * (offset + weight.to(precise))).to(reference.dtype)
        return weight.to(reference.dtype) * unit.to(reference.dtype)

    moved = (change * r + base * (r - r_reference)) * (offset + weight.to(precise))
    both = PolicyAndReference(normed((base + change) * r), normed(base * r_reference), moved.to(reference.dtype))
    rows = None if form is None else quantized_in_lockstep(both.reference, both.difference, form)
    return both, rows, r[:, 0].float()


def gated_product_reference(
    reference_gate: Tensor,
    reference_up: Tensor,
    gate: Tensor,
    up: Tensor,
    *,
    silu: bool,
    form: RowForm | None,
) -> GatedProduct:
    """Return a(gate) * up of policy and reference and overwrite the differences; as `gated_product_in_lockstep_`."""
    precise, dtype = torch.promote_types(gate.dtype, torch.float32), gate.dtype

    def product(g: Tensor, u: Tensor) -> Tensor:
        return (F.silu(g) if silu else F.gelu(g, approximate="tanh")) * u

    g, u, dg, du = (x.to(precise) for x in (reference_gate, reference_up, gate, up))
    base, own = product(g, u), product(g + dg, u + du)
    gate.copy_(g + dg)
    up.copy_(u + du)
    reference, difference = base.to(dtype), (own - base).to(dtype)
    policy = own.to(dtype)
    if form is None:
        return GatedProduct(policy, reference, difference, None)
    return GatedProduct(policy, None, None, quantized_in_lockstep(reference, difference, form))


def quantized_in_lockstep(reference: Tensor, difference: Tensor, form: RowForm) -> LockstepRows:
    """Return rows [T, K] of the reference and of the difference in 8 bits."""
    return LockstepRows(quantize_rows(reference, form=form), quantize_rows(difference, form=form))
