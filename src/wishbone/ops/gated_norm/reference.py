"""The definition, in float32 or wider."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class GatedNorm:
    """Which gated norm it is.

    Attributes:
        eps: added to the mean of squares.
        gate_first: whether the gate is multiplied before the norm, else after it.
        group: elements that are normed together; a part of the weight's.
    """

    eps: float
    gate_first: bool
    group: int


def gated_norm_reference(x: Tensor, gate: Tensor, weight: Tensor, norm: GatedNorm) -> Tensor:
    """Return the gated norm of the last dimension; arguments as `gated_norm`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    share = F.silu(gate.to(dtype))
    h = x.to(dtype) * share if norm.gate_first else x.to(dtype)
    groups = h.unflatten(-1, (-1, norm.group))
    normed = (groups * (groups.square().mean(-1, keepdim=True) + norm.eps).rsqrt()).flatten(-2)
    y: Tensor = weight.to(dtype) * normed
    return (y if norm.gate_first else y * share).to(x.dtype)
