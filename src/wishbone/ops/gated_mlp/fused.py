r"""A gated MLP as one function of autograd.

With G, U the outputs of gate and up, P = act(G) U and g the gradient of y = down(P):

    dP = (gradient of down's input),    dG = dP U act'(G),    dU = dP act(G),    dx = dG W_gate + dU W_up + ...

Kept for the backward pass: x, G and U; of P only its low-rank product, [T, r]; the factors as they were cast. The
backward pass computes P again together with dG and dU in one elementwise pass that overwrites dP, G and U, and
quantizes dG and dU for 8-bit weights. So the graph of such a call can be used once; a second backward pass is refused.

Rows of at least one and a half times `tile_tokens` are computed tile by tile and keep only x: G and U, which are
several times as wide as x, never exist for the whole row, but are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wishbone.ops.carried_difference import gated_product_in_lockstep_
from wishbone.ops.fp8_quantize import swiglu_quantize, swiglu_quantize_both
from wishbone.ops.frozen_linear import EightBitWeight, FrozenWeight, Prepared
from wishbone.ops.gated_mlp import elementwise
from wishbone.ops.gated_mlp.elementwise import Activation
from wishbone.ops.lora_linear.adapter import Adapter, adapters_of, factors_and_scales, of_dtypes
from wishbone.ops.lora_linear.fused import has_graph
from wishbone.ops.lora_linear.group import Factors, LinearGroup
from wishbone.ops.lora_linear.lockstep import ReferenceCall
from wishbone.ops.lora_linear.precision import compute_dtype, without_autocast

BEFORE_FACTORS = 8
"""Arguments of `_GatedMLP` before A_1 .. A_m, B_1 .. B_m."""


def gated_mlp(
    x: Tensor,
    weights: Sequence[FrozenWeight],
    biases: Sequence[Tensor | None],
    adapters: Sequence[Adapter | None],
    *,
    activation: Activation,
    tile_tokens: int | None = None,
    prepared: Prepared | None = None,
    reference_call: ReferenceCall | None = None,
) -> Tensor:
    """Return `down(act(gate(x)) * up(x))`.

    Args:
        x: [..., K]; with autocast on it is cast to autocast's dtype first.
        weights: frozen W of gate [I, K], up [I, K], down [K, I]; or of gate and up in one [2 I, K], down [K, I].
        biases: of each weight, frozen, or None.
        adapters: of each weight, or None, as in `lora_linears`.
        activation: act.
        tile_tokens: about how many tokens are computed at a time; None computes a whole row at once.
        prepared: what `prepare` of gate's weight makes of `x` [T, K], where it was made together with x; tiles make
            their own.
        reference_call: that of the reference, computed as well: its input, the adapters of all layers, the rows of
            gate's and up's input; y_ref [T, K] is left in it.

    Returns:
        [..., K].
    """
    x = x.to(compute_dtype(x))
    rows = x.reshape(-1, x.shape[-1])
    factors, scales = factors_and_scales(adapters)
    tile = tile_tokens if tile_tokens and _tile_count(rows.shape[0], tile_tokens) > 1 else None
    with without_autocast(x.device):
        if has_graph(rows, *factors):
            y: Tensor = _GatedMLP.apply(
                rows, prepared, reference_call, weights, biases, scales, activation, tile, *factors
            )
        else:
            with torch.no_grad():
                block = _Block(weights, biases, adapters, x.dtype, activation)
                y = (
                    _forward_tiled(block, rows, tile, reference_call)[0]
                    if tile
                    else block.forward(rows, prepared, reference_call).y
                )
    return y.view(*x.shape[:-1], y.shape[-1])


class _Block:
    """The arithmetic of one MLP for one pass, on plain tensors without autograd."""

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
    ) -> _Forward:
        """Return y, the outputs of gate and up as they lie in memory, one tensor or two, and low-rank products."""
        if reference_call is not None:
            return self._forward_in_lockstep(x, reference_call)
        outputs, low = self.expand(x, prepared)
        y, down_low = self.contract(outputs)
        return _Forward(y, outputs, low, down_low)

    def _forward_in_lockstep(self, x: Tensor, reference_call: ReferenceCall) -> _Forward:
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
        return _Forward(y, outputs, low, down_low)

    def _forward_carried(self, x: Tensor, reference_call: ReferenceCall) -> _Forward:
        """`_forward_in_lockstep` with what the policy's x differs by in a tensor of its own."""
        bases, outputs, low = self.into.forward_of_difference(x, reference_call)
        form = self.down.weights[0].input_form
        product, reference, difference, rows = gated_product_in_lockstep_(
            *_gate_and_up(bases), *_gate_and_up(outputs), silu=self.activation == "silu", form=form
        )
        del bases
        reference, difference = (product if one is None else one for one in (reference, difference))  # or in `rows`
        down = ReferenceCall(reference, [None], rows, difference)
        (y,), down_low = self.down.forward_in_lockstep(product, down)
        reference_call.leave(*down.outputs, differences=down.differences)
        return _Forward(y, outputs, low, down_low)

    def expand(self, x: Tensor, prepared: Prepared | None = None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return the outputs of gate and up as they lie in memory, one tensor or two, and their low-rank product."""
        if self.into.joined is None:
            return self.into.forward(x, prepared)
        together, low = self.into.forward_together(x, prepared)
        return (together,), low

    def contract(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """Return y from the outputs of gate and up, and the low-rank product of down."""
        gate, up = _gate_and_up(outputs)
        weight, rows = self.down.weights[0], None
        if weight.input_form is not None and self.activation == "silu":
            product, rows = swiglu_quantize(gate, up, keep=self.down.a is not None, form=weight.input_form)
            if product is None:
                return weight.forward(rows, self.down.biases[0]), None
        else:
            product = _elementwise(gate).gated_product(gate, up, self.activation)
        (y,), low = self.down.forward(product, rows)
        return y, low

    def backward(
        self, grad: Tensor, x: Tensor | None, outputs: tuple[Tensor, ...], lows: _Lows, wants_input: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Return dx and the gradients of A_1 .. A_m, B_1 .. B_m, float32 or better; `outputs` are overwritten.

        Without x [T, K] there are no gradients of the A of gate and up, without low-rank products none of the B.
        """
        low, down_low = lows
        down_h = self.down.down([grad])
        down_b = self.down.b_gradients([grad], down_low)
        product = self.down.input_gradient([grad], down_h)
        together = outputs[0] if len(outputs) == 1 else None
        weight, rows = self.into.whole, None
        if isinstance(weight, EightBitWeight) and together is not None and wants_input:
            rows = _elementwise(product).gated_backward_quantized_(
                product, together, self.activation, weight.scale, weight.gradient_form
            )
        else:
            _elementwise(product).gated_backward_(product, *_gate_and_up(outputs), self.activation)
        down_a = self.down.a_gradients(down_h, product)
        del product
        grads = outputs if together is None else together.split(self.into.sizes, dim=1)
        dx, a, b = self.into.backward(grads, x, low, wants_input=wants_input, together=together, prepared=rows)
        return dx, [*a, *down_a, *b, *down_b]


_Lows = tuple[Tensor | None, Tensor | None]


class _Forward(NamedTuple):
    y: Tensor
    outputs: tuple[Tensor, ...]
    low: Tensor | None
    down_low: Tensor | None


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        prepared: Prepared | None,
        reference_call: ReferenceCall | None,
        weights: Sequence[FrozenWeight],
        biases: Sequence[Tensor | None],
        scales: Sequence[float],
        activation: Activation,
        tile: int | None,
        *factors: Tensor | None,
    ) -> Tensor:
        block = _Block(weights, biases, adapters_of(factors, scales), x.dtype, activation)
        ctx.weights, ctx.biases, ctx.scales, ctx.dtype, ctx.activation = weights, biases, scales, x.dtype, activation
        ctx.tile, ctx.used = tile, False
        if tile is not None:
            y, down_low = _forward_tiled(block, x, tile, reference_call)
            ctx.save_for_backward(x, down_low, *block.factors, *factors)
            return y
        y, outputs, low, down_low = block.forward(x, prepared, reference_call)
        trains_input_a = any(ctx.needs_input_grad[BEFORE_FACTORS : BEFORE_FACTORS + len(weights) - 1])
        ctx.save_for_backward(x if trains_input_a else None, low, down_low, *outputs, *block.factors, *factors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.used and ctx.tile is None:
            raise RuntimeError("gated_mlp overwrites what it kept with its gradients: its graph can be used only once")
        ctx.used = True
        m = len(ctx.scales)
        tensors = ctx.saved_tensors
        saved, cast, factors = tensors[: -3 * m - 2], tensors[-3 * m - 2 : -2 * m], tensors[-2 * m :]
        grad = grad.contiguous()
        wants_input = ctx.needs_input_grad[0]
        with without_autocast(grad.device):
            adapters = adapters_of(factors, ctx.scales)
            block = _Block(ctx.weights, ctx.biases, adapters, ctx.dtype, ctx.activation, cast)
            if ctx.tile is None:
                x, low, down_low, *outputs = saved
                dx, gradients = block.backward(grad, x, tuple(outputs), (low, down_low), wants_input)
            else:
                dx, gradients = _backward_tiled(block, grad, saved[0], saved[1], ctx.tile, wants_input)
        needed = ctx.needs_input_grad[BEFORE_FACTORS:]
        return dx, *(None,) * (BEFORE_FACTORS - 1), *of_dtypes(gradients, factors, needed)


def _forward_tiled(
    block: _Block, x: Tensor, tile: int, reference_call: ReferenceCall | None
) -> tuple[Tensor, Tensor | None]:
    """Return y and the low-rank product of down, tile by tile."""
    y = x.new_empty(x.shape[0], block.down.weights[0].out_features)
    if reference_call is not None:
        reference_call.leave(
            torch.empty_like(y), differences=[] if reference_call.difference is None else [torch.empty_like(y)]
        )
    lows = []
    for rows in _tiles(x.shape[0], tile):
        part = None if reference_call is None else reference_call.tile(rows)
        y[rows], _, _, low = block.forward(x[rows], reference_call=part)
        if reference_call is not None and part is not None:
            for whole, tiled in zip(
                reference_call.outputs + reference_call.differences, part.outputs + part.differences, strict=True
            ):
                whole[rows] = tiled
        if low is not None:
            lows.append(low)
    return y, torch.cat(lows) if lows else None


def _backward_tiled(
    block: _Block, grad: Tensor, x: Tensor, down_low: Tensor | None, tile: int, wants_input: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return gradients as `_Block.backward` does, tile by tile from x and the low-rank product of down."""
    dx = torch.empty_like(x) if wants_input else None
    total: list[Tensor | None] = []
    for rows in _tiles(x.shape[0], tile):
        outputs, low = block.expand(x[rows])
        lows = low, None if down_low is None else down_low[rows]
        part, gradients = block.backward(grad[rows], x[rows], outputs, lows, wants_input)
        if dx is not None and part is not None:
            dx[rows] = part
        if not total:
            total = gradients
            continue
        for so_far, gradient in zip(total, gradients, strict=True):
            if so_far is not None and gradient is not None:
                so_far += gradient
    return dx, total


def _tiles(tokens: int, tile: int) -> Iterator[slice]:
    """Yield slices of about `tile` tokens, as equal as possible."""
    count = _tile_count(tokens, tile)
    for i in range(count):
        yield slice(i * tokens // count, (i + 1) * tokens // count)


def _tile_count(tokens: int, tile: int) -> int:
    """Return tokens / tile, rounded to the nearest: the tiles of a row."""
    return (2 * tokens + tile) // (2 * tile)


def _gate_and_up(outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    gate, up = outputs[0].chunk(2, dim=1) if len(outputs) == 1 else outputs
    return gate, up


def _elementwise(tensor: Tensor) -> Any:
    """Return the module with the elementwise part: Triton's on CUDA, except for float64."""
    if tensor.is_cuda and tensor.dtype != torch.float64:
        from wishbone.ops.gated_mlp import triton

        return triton
    return elementwise
