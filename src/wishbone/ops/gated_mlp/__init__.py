"""The gated feed-forward block of a transformer layer as one op: its reference and its fused form.

    y = down( act(gate(x)) * up(x) )

Shazeer 2020, "GLU Variants Improve Transformer" (arXiv:2002.05202), equation 6. Each of gate, up and down is a frozen
linear layer with an optional low-rank adapter, as in `ops/lora_linear`.
"""

from __future__ import annotations

from wishbone.ops.gated_mlp.elementwise import Activation, activate
from wishbone.ops.gated_mlp.fused import gated_mlp
from wishbone.ops.gated_mlp.reference import gated_mlp_reference

__all__ = ["Activation", "activate", "gated_mlp", "gated_mlp_reference"]
