"""Seconds of a mixture's experts in a step on a GPU: more bytes than those of a dense layer with as many operations.

    seconds = passes ( 2 E (u + rows n T/2) / rate                    products; a tile of each of n experts is half full
                     + rows 2 W / bandwidth                           all experts are read, whichever a token goes to
                     + 2 u k (5 H + 15/2 I) / bandwidth )             their rows are gathered, gated, weighted, added up
            + rows again (codes + 2 W) / (share bandwidth)            codes become 16 bits, forward and backward
            + ADAPTED u k 2 (inputs + outputs) / bandwidth            adapters on the stacks

E counts the weights of the experts of a token, W all of them, u tokens, k the experts of a token, H and I their sizes.
A row of H elements is read or written ten times in two passes: gathered (twice), multiplied, written, added up, and the
same for its gradient; of I elements fifteen times. Pieces that were timed on an H200 (mixtures-h200.json) agree: one
layer's experts with 65,536 rows take 1.43 ms forward and 1.68 backward, of which products are 2.19.
"""

from __future__ import annotations

from wishbone.planning.memory import EIGHT_BITS, MemoryPlan, adapted_of_expert
from wishbone.planning.model_shape import ModelShape
from wishbone.planning.work import Work

TILE = 128
"""Rows of a tile of the grouped products: each expert's last one is half full, on average."""
TURNED = 0.8
"""Share of the bandwidth at which codes become 16 bits: 0.478 ms for FP8's stacks, 0.382 for NF4's."""
ADAPTED = 9.5
"""How often inputs and outputs of adapted experts are read or written in the policy's passes: 1.66 ms a layer."""
CODE_BYTES = {"nf4": 0.5, "fp8": 1.0, "int8": 1.0}


def expert_parameters(shape: ModelShape) -> int:
    """Return the weights of the experts that a token goes to."""
    return shape.expert_layers * shape.experts_used * shape.matrices * shape.hidden * shape.expert_inner


def expert_seconds(shape: ModelShape, plan: MemoryPlan, work: Work, rate: float, bandwidth: float) -> float:
    """Return the seconds of all experts in a step; 0 for a dense model.

    Args:
        shape: of the model.
        plan: of the run.
        work: what a step computes.
        rate: operations a second of products in 16 bits.
        bandwidth: bytes a second of the GPU's memory.
    """
    if not shape.expert_layers:
        return 0.0
    passes = work.passes + work.recomputed
    stacks = shape.expert_layers * shape.experts * shape.matrices * shape.hidden * shape.expert_inner
    filled = work.tokens * expert_parameters(shape) + work.rows * stacks * TILE / 2
    moved = 2 * work.tokens * shape.expert_layers * shape.experts_used * (5 * shape.hidden + 7.5 * shape.expert_inner)
    seconds = passes * (2 * filled / rate + (work.rows * 2 * stacks + moved) / bandwidth)
    if plan.weights in ("nf4", *EIGHT_BITS):
        again = work.rows * (2 + work.recomputed)
        seconds += again * (CODE_BYTES[plan.weights] + 2) * stacks / (TURNED * bandwidth)
    if plan.method == "lora":
        rows = work.tokens * shape.expert_layers * shape.experts_used
        seconds += ADAPTED * 2 * rows * adapted_of_expert(shape, plan) / bandwidth
    return seconds


def kept_of_experts(shape: ModelShape, plan: MemoryPlan) -> float:
    """Return the bytes a token that a layer keeps of its experts, which `expert_seconds` counts otherwise."""
    if not shape.expert_layers or shape.inner:
        return 0.0
    alone = shape.mlp_alone / shape.layers if shape.mlp_alone else 1.0
    return plan.element_bytes * (2 if plan.fused else 4) * shape.experts_used * shape.expert_inner * alone
