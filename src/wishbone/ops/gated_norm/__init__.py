"""RMSNorm with a gate, as recurrent layers end with: one op, its definition, a Triton kernel.

With a = silu(z) of the gate z, of groups of elements each by itself:

    gate first (Mamba-2):     y = w x a / sqrt(mean (x a)^2 + eps)
    norm first (delta rule):  y = w x / sqrt(mean x^2 + eps) a
"""

from __future__ import annotations

from torch import Tensor

from wishbone.ops.gated_norm.reference import GatedNorm, gated_norm_reference

__all__ = ["GatedNorm", "gated_norm", "gated_norm_reference"]


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, norm: GatedNorm) -> Tensor:
    """Return the gated norm of the last dimension; the weight gets no gradient from the kernel.

    Args:
        x, gate: [..., size], of one shape.
        weight: [size], frozen.
        norm: which of both, its epsilon and its groups.

    Returns:
        [..., size], dtype of `x`.
    """
    if x.is_cuda and x.dtype.itemsize <= 4:
        from wishbone.ops.gated_norm.triton import gated_norm_triton

        return gated_norm_triton(x, gate, weight, norm)
    return gated_norm_reference(x, gate, weight, norm)
