r"""A gated MLP as one function of autograd.

With G, U the outputs of gate and up, P = act(G) U and g the gradient of y = down(P):

    dP = (gradient of down's input),    dG = dP U act'(G),    dU = dP act(G),    dx = dG W_gate + dU W_up + ...

What the backward pass needs is kept before y is computed, which it does not need: a layer that is recomputed for its
backward pass ends there, and its down projection is computed once.

Kept for the backward pass: x, G and U; of P only its low-rank product, [T, r]; the factors as they were cast. The
backward pass computes P again together with dG and dU in one elementwise pass that overwrites dP, G and U, and
quantizes dG and dU for 8-bit weights. So the graph of such a call can be used once; a second backward pass is refused.

Rows of at least one and a half times `tile_tokens` are computed tile by tile and keep only x: G and U, which are
several times as wide as x, never exist for the whole row, but are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wishbone.ops.frozen_linear import FrozenWeight, Prepared
from wishbone.ops.gated_mlp.block import Block
from wishbone.ops.gated_mlp.elementwise import Activation
from wishbone.ops.lora_linear.adapter import Adapter, adapters_of, factors_and_scales, of_dtypes
from wishbone.ops.lora_linear.fused import has_graph
from wishbone.ops.lora_linear.lockstep import ReferenceCall
from wishbone.ops.lora_linear.precision import compute_dtype, without_autocast

BEFORE_FACTORS = 9
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
            later: list[Callable[[], Tensor]] | None = [] if reference_call is None else None
            y: Tensor = _GatedMLP.apply(
                rows, prepared, reference_call, later, weights, biases, scales, activation, tile, *factors
            )
            y = y if later is None else _Later.apply(y, later)
        else:
            with torch.no_grad():
                block = Block(weights, biases, adapters, x.dtype, activation)
                y = (
                    _forward_tiled(block, rows, tile, reference_call)
                    if tile
                    else block.forward(rows, prepared, reference_call).y
                )
    return y.view(*x.shape[:-1], y.shape[-1])


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        prepared: Prepared | None,
        reference_call: ReferenceCall | None,
        later: list[Callable[[], Tensor]] | None,
        weights: Sequence[FrozenWeight],
        biases: Sequence[Tensor | None],
        scales: Sequence[float],
        activation: Activation,
        tile: int | None,
        *factors: Tensor | None,
    ) -> Tensor:
        """Return y; with `later` leave there what computes it, and return a tensor of its shape without values."""
        block = Block(weights, biases, adapters_of(factors, scales), x.dtype, activation)
        ctx.weights, ctx.biases, ctx.scales, ctx.dtype, ctx.activation = weights, biases, scales, x.dtype, activation
        ctx.tile, ctx.used = tile, False
        if tile is not None:
            ctx.save_for_backward(x, *block.factors, *factors)
            return _now_or_later(partial(_forward_tiled, block, x, tile, reference_call), x, block, later)
        if later is None:
            y, outputs, low, down_low = block.forward(x, prepared, reference_call)
        else:
            outputs, low = block.expand(x, prepared)
            product, rows, down_low = block.activate(outputs)
            y = _now_or_later(partial(block.contract, product, rows, down_low), x, block, later)
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
            block = Block(ctx.weights, ctx.biases, adapters, ctx.dtype, ctx.activation, cast)
            if ctx.tile is None:
                x, low, down_low, *outputs = saved
                dx, gradients = block.backward(grad, x, tuple(outputs), (low, down_low), wants_input)
            else:
                dx, gradients = _backward_tiled(block, grad, saved[0], ctx.tile, wants_input)
        needed = ctx.needs_input_grad[BEFORE_FACTORS:]
        return dx, *(None,) * (BEFORE_FACTORS - 1), *of_dtypes(gradients, factors, needed)


class _Later(torch.autograd.Function):
    """What is computed after `_GatedMLP` has kept its tensors; its gradient is that of `_GatedMLP`'s output."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, later: list[Callable[[], Tensor]]) -> Tensor:
        return later.pop()()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _now_or_later(
    compute: Callable[[], Tensor], x: Tensor, block: Block, later: list[Callable[[], Tensor]] | None
) -> Tensor:
    """Return y; or note in `later` how it is computed and return a tensor of its shape, without memory of its own."""
    if later is None:
        return compute()
    later.append(compute)
    return x.new_empty(()).expand(x.shape[0], block.down.sizes[0])


def _forward_tiled(block: Block, x: Tensor, tile: int, reference_call: ReferenceCall | None) -> Tensor:
    """Return y, tile by tile."""
    y = x.new_empty(x.shape[0], block.down.weights[0].out_features)
    if reference_call is not None:
        reference_call.leave(
            torch.empty_like(y), differences=[] if reference_call.difference is None else [torch.empty_like(y)]
        )
    for rows in _tiles(x.shape[0], tile):
        part = None if reference_call is None else reference_call.tile(rows)
        y[rows] = block.forward(x[rows], reference_call=part).y
        if reference_call is not None and part is not None:
            for whole, tiled in zip(
                reference_call.outputs + reference_call.differences, part.outputs + part.differences, strict=True
            ):
                whole[rows] = tiled
    return y


def _backward_tiled(
    block: Block, grad: Tensor, x: Tensor, tile: int, wants_input: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return gradients as `Block.backward` does, tile by tile from x."""
    dx = torch.empty_like(x) if wants_input else None
    total: list[Tensor | None] = []
    for rows in _tiles(x.shape[0], tile):
        outputs, low = block.expand(x[rows])
        part, gradients = block.backward(grad[rows], x[rows], outputs, (low, None), wants_input)
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
