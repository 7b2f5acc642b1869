"""Whether what a fused form computes is what the model's own code computes, but for rounding."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def differs_by_rounding(ours: Tensor, own: Tensor, tolerance: Mapping[torch.dtype, float]) -> bool:
    """Return whether the relative difference of two tensors, in the 2-norm, is at most the tolerance of their dtype.

    Tensors of unequal shapes or dtypes, or of a dtype without a tolerance, differ by more.
    """
    if ours.shape != own.shape or ours.dtype != own.dtype or own.dtype not in tolerance:
        return False
    return bool((ours.double() - own.double()).norm() <= tolerance[own.dtype] * own.double().norm())
