"""The experts of a mixture as one function: stacked frozen weights, each expert with an optional low-rank adapter.

    y_t = sum_j p_tj  W_down^e  h_tj,      h_tj = gate(W_up^e x_t),      e = the j-th expert that token t goes to

Shazeer et al. 2017, "Outrageously Large Neural Networks" (arXiv:1701.06538), equation 1. An adapter adds s B^e A^e to
the matrix of each expert; the matrices themselves are never changed or copied.
"""

from __future__ import annotations

from wishbone.ops.expert_mlp.fused import ExpertsOfReference, expert_mlp
from wishbone.ops.expert_mlp.gate import ClampedGate, Gate, GatedProduct, GateOf
from wishbone.ops.expert_mlp.quantized import FP8BlockStack, FP8Stack, NF4Stack, QuantizedStack
from wishbone.ops.expert_mlp.reference import expert_mlp_reference
from wishbone.ops.expert_mlp.rotated import Int8Stack
from wishbone.ops.expert_mlp.stacked import StackedAdapter, StackedLinear

__all__ = [
    "ClampedGate",
    "ExpertsOfReference",
    "FP8BlockStack",
    "FP8Stack",
    "Gate",
    "GateOf",
    "GatedProduct",
    "Int8Stack",
    "NF4Stack",
    "QuantizedStack",
    "StackedAdapter",
    "StackedLinear",
    "expert_mlp",
    "expert_mlp_reference",
]
