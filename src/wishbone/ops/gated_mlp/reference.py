"""A gated MLP, written as the equation; autograd keeps what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wishbone.ops.frozen_linear.weight import FrozenWeight
from wishbone.ops.gated_mlp.elementwise import Activation, activate
from wishbone.ops.lora_linear.adapter import Adapter
from wishbone.ops.lora_linear.reference import lora_linears_reference


def gated_mlp_reference(
    x: Tensor,
    weights: Sequence[FrozenWeight],
    biases: Sequence[Tensor | None],
    adapters: Sequence[Adapter | None],
    *,
    activation: Activation,
) -> Tensor:
    """Return `down(act(gate(x)) * up(x))`; arguments as `gated_mlp`."""
    outputs = lora_linears_reference(x, weights[:-1], biases[:-1], adapters[:-1])
    gate, up = outputs[0].chunk(2, dim=-1) if len(outputs) == 1 else outputs
    (y,) = lora_linears_reference(activate(gate, activation) * up, weights[-1:], biases[-1:], adapters[-1:])
    return y
