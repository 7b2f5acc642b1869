"""Frozen linear layers that share one input, each with an optional low-rank adapter.

    y_i = x W_i^T + b_i + s_i (x A_i^T) B_i^T

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), equation 3.
"""

from __future__ import annotations

from wishbone.ops.lora_linear.adapter import Adapter
from wishbone.ops.lora_linear.fused import lora_linears
from wishbone.ops.lora_linear.lockstep import ReferenceCall
from wishbone.ops.lora_linear.one_buffer import fuse_group
from wishbone.ops.lora_linear.precision import compute_dtype
from wishbone.ops.lora_linear.reference import lora_linears_reference

__all__ = [
    "Adapter",
    "ReferenceCall",
    "compute_dtype",
    "fuse_group",
    "lora_linears",
    "lora_linears_reference",
]
