r"""The experts of a mixture as one function of autograd, which keeps little.

Kept for the backward pass: x [T, K] where the first A is trained, u [S, U], l_up and l_down [S, r], shares and routing;
not the rows of x [S, K], h [S, I] or the rows of y [S, K]. The gradient of a share needs no row of y:

    d p_s = do_t . y_s = (W_down^T do_t) . h_s + do_t . b_down

and the same W_down^T do_t, times p_s, is the gradient of h_s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wishbone.ops.expert_mlp import grouped
from wishbone.ops.expert_mlp.gate import Gate
from wishbone.ops.expert_mlp.routing import Routing
from wishbone.ops.expert_mlp.stacked import StackedAdapter, StackedLinear, StackedPass
from wishbone.ops.lora_linear.fused import has_graph
from wishbone.ops.lora_linear.precision import without_autocast

BEFORE_FACTORS = 7
"""Arguments of `_ExpertMLP` before the factors of both adapters."""


@dataclass
class ExpertsOfReference:
    """The reference's half of a call: the same frozen weights, read and turned into 16 bits once for both.

    Attributes:
        x, chosen, share: as of `expert_mlp`.
        up, down: adapters of the reference, or None.
        y: [T, K], once the call has run; without gradient.
    """

    x: Tensor
    chosen: Tensor
    share: Tensor
    up: StackedAdapter | None = None
    down: StackedAdapter | None = None
    y: Tensor | None = None

    def leave(self, y: Tensor) -> None:
        """Note the output of the call."""
        self.y = y


def expert_mlp(
    x: Tensor,
    chosen: Tensor,
    share: Tensor,
    up: StackedLinear,
    down: StackedLinear,
    gate: Gate,
    reference_call: ExpertsOfReference | None = None,
) -> Tensor:
    """Return what the experts of each token make of it, weighted and added up.

    Args:
        x: [T, K], in the dtype of the arithmetic.
        chosen: [T, k], the experts of each token.
        share: [T, k], their weights p.
        up: layers [experts, U, K].
        down: layers [experts, K, I].
        gate: between the two. Its graph can be used only once, as u is overwritten with its gradient.
        reference_call: that of the reference, computed as well; its y is left in it.

    Returns:
        [T, K], in the dtype of x. Gradients go to x, share and the factors of adapters, each in its own dtype.
    """
    routing = Routing.of(chosen, up.shape[0])
    factors = _factors(up.adapter, down.adapter)
    with without_autocast(x.device):
        if has_graph(x, share, *factors):
            y: Tensor = _ExpertMLP.apply(x, share, routing, up, down, gate, reference_call, *factors)
            return y
        with torch.no_grad():
            passes = StackedPass(up, x.dtype, routing), StackedPass(down, x.dtype, routing)
            return _forward(x, share, *passes, gate, reference_call)[0]


def _factors(*adapters: StackedAdapter | None) -> list[Tensor | None]:
    """Return A and B of each."""
    return [factor for one in adapters for factor in ((None, None) if one is None else (one.a, one.b))]


def _forward(
    x: Tensor, share: Tensor, up: StackedPass, down: StackedPass, gate: Gate, reference_call: ExpertsOfReference | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return y, u, and the low-rank products of both layers; leave the reference's y in `reference_call`."""
    matrices = up.matrices()
    u, low = up.forward(x.index_select(0, up.routing.token), matrices)
    reference_up = reference_down = None
    if reference_call is not None:
        routing = Routing.of(reference_call.chosen, matrices.shape[0])
        reference_up, reference_down = (
            up.with_adapter(reference_call.up, routing),
            down.with_adapter(reference_call.down, routing),
        )
        reference = gate.forward(reference_up.forward(reference_call.x.index_select(0, routing.token), matrices)[0])
    matrices = down.matrices()
    rows, down_low = down.forward(gate.forward(u), matrices)
    y = grouped.gathered(rows, up.routing, share)
    if reference_call is not None and reference_down is not None:
        del rows
        rows, _ = reference_down.forward(reference, matrices)
        reference_call.leave(grouped.gathered(rows, reference_down.routing, reference_call.share))
    return y, u, low, down_low


class _ExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        share: Tensor,
        routing: Routing,
        up: StackedLinear,
        down: StackedLinear,
        gate: Gate,
        reference_call: ExpertsOfReference | None,
        *factors: Tensor | None,
    ) -> Tensor:
        first, second = StackedPass(up, x.dtype, routing), StackedPass(down, x.dtype, routing)
        y, u, low, down_low = _forward(x, share, first, second, gate, reference_call)
        trains_a = ctx.needs_input_grad[BEFORE_FACTORS]
        ctx.save_for_backward(
            x if trains_a else None,
            share,
            u,
            low if ctx.needs_input_grad[BEFORE_FACTORS + 1] else None,
            down_low if ctx.needs_input_grad[BEFORE_FACTORS + 3] else None,
            *vars(routing).values(),
            *factors,
        )
        ctx.layers = [replace(linear, adapter=None) for linear in (up, down)]
        ctx.scales = [0.0 if linear.adapter is None else linear.adapter.scale for linear in (up, down)]
        ctx.gate, ctx.dtype, ctx.used = gate, x.dtype, False
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.used:
            raise RuntimeError("expert_mlp overwrites what it kept with its gradients: its graph can be used only once")
        ctx.used = True
        x, share, u, low, down_low, *rest = ctx.saved_tensors
        routing, factors = Routing(*rest[:4]), rest[4:]
        adapters = [
            None if a is None else StackedAdapter(a, b, scale)
            for a, b, scale in zip(factors[::2], factors[1::2], ctx.scales, strict=True)
        ]
        with without_autocast(grad.device):
            up, down = (
                StackedPass(replace(layer, adapter=adapter), ctx.dtype, routing)
                for layer, adapter in zip(ctx.layers, adapters, strict=True)
            )
            dx, dshare, gradients = _backward(grad.contiguous(), x, share, u, (low, down_low), up, down, ctx)
        needed = ctx.needs_input_grad[BEFORE_FACTORS:]
        found = [
            gradient.to(factor.dtype) if need and gradient is not None else None
            for gradient, factor, need in zip(gradients, factors, needed, strict=True)
        ]
        return dx, dshare, *(None,) * (BEFORE_FACTORS - 2), *found


def _backward(
    grad: Tensor,
    x: Tensor | None,
    share: Tensor,
    u: Tensor,
    lows: tuple[Tensor | None, Tensor | None],
    up: StackedPass,
    down: StackedPass,
    ctx: Any,
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Return dx, the gradient of the shares, and those of A_up, B_up, A_down, B_down; u is overwritten."""
    routing, (low, down_low) = up.routing, lows
    rows = grad.index_select(0, routing.token)
    p = share.reshape(-1).index_select(0, routing.choice).to(grad.dtype)[:, None]
    down_h = down.down(rows)
    unweighted = down.input_gradient(rows, down_h)
    down_b = None if down_low is None else down.b_gradient(rows, down_low * p)
    keep = down_h is not None
    h, u_gradient, dots = grouped.weighted_backward_(ctx.gate, unweighted, u, share, routing, keep=keep)
    dshare = None
    if ctx.needs_input_grad[1]:
        if down.bias is not None:
            dots += _dots_with_bias(rows, down.bias, routing)
        dshare = dots[routing.row].to(share.dtype)
    del unweighted, rows
    down_a = None if down_h is None or h is None else down.a_gradient(down_h * p, h)
    del h
    up_h = up.down(u_gradient)
    up_b = up.b_gradient(u_gradient, low)
    up_a = None if x is None else up.a_gradient(up_h, x.index_select(0, routing.token))
    dx = None
    if ctx.needs_input_grad[0]:
        dx = grouped.gathered(up.input_gradient(u_gradient, up_h), routing)
    return dx, dshare, [up_a, up_b, down_a, down_b]


def _dots_with_bias(rows: Tensor, bias: Tensor, routing: Routing) -> Tensor:
    """Return rows_s . b^e [S], float32 or better."""
    precise = torch.promote_types(rows.dtype, torch.float32)
    columns = torch.nn.functional.pad(bias[:, :, None], (0, 7))  # grouped products take a multiple of 16 bytes
    return grouped.product(rows, columns, routing)[:, 0].to(precise)
