"""y = x W^T and dx = g W for a frozen weight W in whatever form it is stored: 16 bits, NF4, FP8, int8."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from wishbone.ops.fp8_quantize import E4M3
from wishbone.ops.frozen_linear.eight_bit import EightBitWeight
from wishbone.ops.frozen_linear.fp8 import FP8BlockWeight, FP8Weight
from wishbone.ops.frozen_linear.int8 import Int8Weight
from wishbone.ops.frozen_linear.linear import frozen_linear
from wishbone.ops.frozen_linear.matrix import DenseWeight, MatrixWeight
from wishbone.ops.frozen_linear.nf4 import NF4Weight
from wishbone.ops.frozen_linear.reference import frozen_linear_reference
from wishbone.ops.frozen_linear.weight import FrozenWeight, InputForm, Prepared

__all__ = [
    "DENSE",
    "DenseWeight",
    "EightBitWeight",
    "FP8BlockWeight",
    "FP8Weight",
    "FrozenWeight",
    "InputForm",
    "Int8Weight",
    "MatrixWeight",
    "NF4Weight",
    "Prepared",
    "frozen_linear",
    "frozen_linear_reference",
    "frozen_weight_of",
]

DENSE = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""Dtypes of weights that are matrices as they are."""


def frozen_weight_of(module: nn.Module) -> FrozenWeight | None:
    """Return the frozen weight of a linear layer, or None for a layer that must run its own forward.

    Known are `nn.Linear`, bitsandbytes' `Linear4bit`, and linear layers whose `weight` is float8_e4m3fn beside
    `weight_scale` (one scale a row) or `weight_scale_inv` (one scale a block of 128 x 128), or int8 beside
    `weight_scale` in a layer that says `rotated`. Everything else runs its own forward: a weight that is trained,
    sharded or of a tensor subclass, other quantizations, and layers with hooks or a replaced forward. The bias of the
    layer is not part of the weight.
    """
    weight: Any = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or not isinstance(weight, Tensor) or weight.requires_grad:
        return None
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or "forward" in vars(module):
        return None
    layer, codes = _four_bits()
    if type(weight) not in (Tensor, nn.Parameter, codes) or weight.dim() != 2:
        return None
    if type(module) is layer:
        state = getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)
        usable = state is not None and not getattr(state, "packing_format_for_cpu", False)
        return NF4Weight(weight, state) if usable else None
    if type(weight) is codes:
        return None
    if weight.dtype == E4M3:
        rows, blocks = getattr(module, "weight_scale", None), getattr(module, "weight_scale_inv", None)
        if isinstance(rows, Tensor) and rows.numel() == weight.shape[0]:
            return FP8Weight(weight, rows)
        return FP8BlockWeight(weight, blocks) if isinstance(blocks, Tensor) else None
    if weight.dtype == torch.int8:
        return Int8Weight(weight, module.weight_scale) if getattr(module, "rotated", False) else None  # type: ignore[arg-type]
    return DenseWeight(weight) if type(module) is nn.Linear and weight.dtype in DENSE else None


def _four_bits() -> tuple[type | None, type | None]:
    """Return bitsandbytes' classes of 4-bit layers and of their weights; None where it was not imported."""
    if "bitsandbytes" not in sys.modules:
        return None, None
    from bitsandbytes.nn import Linear4bit, Params4bit

    return Linear4bit, Params4bit
