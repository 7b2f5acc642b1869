"""The arithmetic of one gated MLP for one pass, on plain tensors without autograd; the equations are in `fused.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wishbone.ops.carried_difference import gated_product_in_lockstep_
from wishbone.ops.fp8_quantize import swiglu_quantize, swiglu_quantize_both
from wishbone.ops.frozen_linear import EightBitWeight, FrozenWeight, Prepared
from wishbone.ops.gated_mlp import elementwise
from wishbone.ops.gated_mlp.elementwise import Activation
from wishbone.ops.lora_linear.adapter import Adapter
from wishbone.ops.lora_linear.group import Factors, LinearGroup
from wishbone.ops.lora_linear.lockstep import ReferenceCall


class Block:
    """One MLP for one pass: its weights as they are, the factors of its adapters cast."""

    def __init__(
        self,
        weights: Sequence[FrozenWeight],
        biases: Sequence[Tensor | None],
        adapters: Sequence[Adapter | None],
        dtype: torch.dtype,
        activation: Activation,
        factors: Factors | None = None,
    ) -> None:
        into, down = (None, None) if factors is None else (factors[:-2], factors[-2:])
        self.into = LinearGroup(weights[:-1], biases[:-1], adapters[:-1], dtype, join=True, factors=into)
        self.down = LinearGroup(weights[-1:], biases[-1:], adapters[-1:], dtype, factors=down)
        self.factors = (*self.into.factors, *self.down.factors)
        self.activation = activation

    def forward(
        self, x: Tensor, prepared: Prepared | None = None, reference_call: ReferenceCall | None = None
    ) -> Forward:
        """Return y, the outputs of gate and up as they lie in memory, one tensor or two, and low-rank products."""
        if reference_call is not None:
            return self._forward_in_lockstep(x, reference_call)
        outputs, low = self.expand(x, prepared)
        product, rows, down_low = self.activate(outputs)
        return Forward(self.contract(product, rows, down_low), outputs, low, down_low)

    def _forward_in_lockstep(self, x: Tensor, reference_call: ReferenceCall) -> Forward:
        if reference_call.difference is not None:
            return self._forward_carried(x, reference_call)
        *into_adapters, down_adapter = reference_call.adapters
        into = ReferenceCall(reference_call.x, into_adapters, reference_call.rows)
        outputs, low = self.into.forward_in_lockstep(x, into)
        (gate, up), (reference_gate, reference_up) = _gate_and_up(outputs), _gate_and_up(into.outputs)
        form = self.down.weights[0].input_form
        if form is not None and self.activation == "silu" and down_adapter is None:
            product, rows = swiglu_quantize_both(gate, up, reference_gate, reference_up, form=form)
            assert product is not None
            down = ReferenceCall(product, [None], rows)  # without adapter its x is not read
        else:
            product = _elementwise(gate).gated_product(gate, up, self.activation)
            reference = _elementwise(gate).gated_product(reference_gate, reference_up, self.activation)
            down = ReferenceCall(reference, [down_adapter])
        del reference_gate, reference_up, into
        (y,), down_low = self.down.forward_in_lockstep(product, down)
        reference_call.leave(*down.outputs)
        return Forward(y, outputs, low, down_low)

    def _forward_carried(self, x: Tensor, reference_call: ReferenceCall) -> Forward:
        """`_forward_in_lockstep` with what the policy's x differs by in a tensor of its own."""
        bases, outputs, low = self.into.forward_of_difference(x, reference_call)
        form = self.down.weights[0].input_form
        product, reference, difference, rows = gated_product_in_lockstep_(
            *_gate_and_up(bases), *_gate_and_up(outputs), silu=self.activation == "silu", form=form
        )
        del bases
        assert product is not None
        reference, difference = (product if one is None else one for one in (reference, difference))  # or in `rows`
        down = ReferenceCall(reference, [None], rows, difference)
        (y,), down_low = self.down.forward_in_lockstep(product, down)
        reference_call.leave(*down.outputs, differences=down.differences)
        return Forward(y, outputs, low, down_low)

    def expand(self, x: Tensor, prepared: Prepared | None = None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return the outputs of gate and up as they lie in memory, one tensor or two, and their low-rank product."""
        if self.into.joined is None:
            return self.into.forward(x, prepared)
        together, low = self.into.forward_together(x, prepared)
        return (together,), low

    def activate(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor | None, Prepared | None, Tensor | None]:
        """Return P, its rows in 8 bits where down reads those, and the low-rank product of down; P or rows are None."""
        gate, up = _gate_and_up(outputs)
        form = self.down.weights[0].input_form
        if form is not None and self.activation == "silu":
            product, rows = swiglu_quantize(gate, up, keep=self.down.a is not None, form=form)
            return product, rows, None if product is None else self.down.low(product)
        product = _elementwise(gate).gated_product(gate, up, self.activation)
        return product, None, self.down.low(product)

    def contract(self, product: Tensor | None, rows: Prepared | None, low: Tensor | None) -> Tensor:
        """Return y from what `activate` returns."""
        if product is None:
            assert rows is not None
            return self.down.weights[0].forward(rows, self.down.biases[0])
        return self.down.forward(product, rows, low)[0][0]

    def backward(
        self, grad: Tensor, x: Tensor | None, outputs: tuple[Tensor, ...], lows: Lows, wants_input: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Return dx and the gradients of A_1 .. A_m, B_1 .. B_m, float32 or better; `outputs` are overwritten.

        Without x [T, K] there are no gradients of the A of gate and up, without their low-rank products none of the B.
        Without that of down it is computed again.
        """
        low, down_low = lows
        down_h = self.down.down([grad])
        product = self.down.input_gradient([grad], down_h)
        together = outputs[0] if len(outputs) == 1 else None
        weight, rows = self.into.whole, None
        if isinstance(weight, EightBitWeight) and together is not None and wants_input:
            rows = _elementwise(product).gated_backward_quantized_(
                product, together, self.activation, weight.scale, weight.gradient_form
            )
        else:
            _elementwise(product).gated_backward_(product, *_gate_and_up(outputs), self.activation)
        down_b = self.down.b_gradients([grad], self.down.low(product) if down_low is None else down_low)
        down_a = self.down.a_gradients(down_h, product)
        del product
        grads = outputs if together is None else together.split(self.into.sizes, dim=1)
        dx, a, b = self.into.backward(grads, x, low, wants_input=wants_input, together=together, prepared=rows)
        return dx, [*a, *down_a, *b, *down_b]


Lows = tuple[Tensor | None, Tensor | None]


class Forward(NamedTuple):
    """y, the outputs of gate and up as they lie in memory, their low-rank product, and that of down."""

    y: Tensor
    outputs: tuple[Tensor, ...]
    low: Tensor | None
    down_low: Tensor | None


def _gate_and_up(outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    gate, up = outputs[0].chunk(2, dim=1) if len(outputs) == 1 else outputs
    return gate, up


def _elementwise(tensor: Tensor) -> Any:
    """Return the module with the elementwise part: Triton's on CUDA, except for float64."""
    if tensor.is_cuda and tensor.dtype != torch.float64:
        from wishbone.ops.gated_mlp import triton

        return triton
    return elementwise
