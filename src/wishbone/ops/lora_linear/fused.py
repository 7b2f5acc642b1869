"""A group of linear layers as one function of autograd, which keeps the shared input once.

Kept for the backward pass: x [T, K] where some A is trained, l [T, sum of r_i] where some B is, and nothing else that
grows with T; the factors also in the dtype that they were cast to. The equations are in `group.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wishbone.ops.frozen_linear import FrozenWeight, Prepared
from wishbone.ops.lora_linear.adapter import Adapter, adapters_of, factors_and_scales, of_dtypes
from wishbone.ops.lora_linear.group import LinearGroup
from wishbone.ops.lora_linear.lockstep import ReferenceCall
from wishbone.ops.lora_linear.precision import compute_dtype, without_autocast

BEFORE_FACTORS = 6
"""Arguments of `_LoraLinears` before A_1 .. A_m, B_1 .. B_m."""


def lora_linears(
    x: Tensor,
    weights: Sequence[FrozenWeight],
    biases: Sequence[Tensor | None],
    adapters: Sequence[Adapter | None],
    *,
    prepared: Prepared | None = None,
    reference_call: ReferenceCall | None = None,
) -> tuple[Tensor, ...]:
    """Return `x W_i^T + b_i + s_i (x A_i^T) B_i^T` for each of the layers that share `x`.

    Args:
        x: [..., K]; with autocast on it is cast to autocast's dtype first.
        weights: frozen W_i [N_i, K], in forms that take the dtype of `x`.
        biases: frozen b_i [N_i] or None.
        adapters: an adapter or None for each weight. A and B get their gradients in their own dtype, from products in
            float32 or better.
        prepared: what `prepare` of the first weight makes of `x` [T, K], where it was made together with x; without
            `reference_call`.
        reference_call: that of the reference, computed as well; its outputs are left in it.

    Returns:
        [..., N_i] for each layer. Without a graph, outputs of weights in one buffer are views of one tensor.
    """
    x = x.to(compute_dtype(x))
    rows = x.reshape(-1, x.shape[-1])
    factors, scales = factors_and_scales(adapters)
    with without_autocast(x.device):
        if has_graph(rows, *factors):
            outputs: tuple[Tensor, ...] = _LoraLinears.apply(
                rows, prepared, reference_call, weights, biases, scales, *factors
            )
        else:
            with torch.no_grad():
                group = LinearGroup(weights, biases, adapters, x.dtype, join=reference_call is None)
                outputs, _ = _forward(group, rows, prepared, reference_call)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        prepared: Prepared | None,
        reference_call: ReferenceCall | None,
        weights: Sequence[FrozenWeight],
        biases: Sequence[Tensor | None],
        scales: Sequence[float],
        *factors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        m, needed = len(weights), ctx.needs_input_grad[BEFORE_FACTORS:]
        group = LinearGroup(weights, biases, adapters_of(factors, scales), x.dtype)
        outputs, low = _forward(group, x, prepared, reference_call)
        ctx.save_for_backward(
            x if any(needed[:m]) else None, low if any(needed[m:]) else None, *group.factors, *factors
        )
        ctx.weights, ctx.scales, ctx.dtype = weights, scales, x.dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        m = len(ctx.weights)
        x, low, *saved = ctx.saved_tensors
        cast, factors = saved[: 1 + m], saved[1 + m :]
        own = [g.contiguous() for g in grads if g is not None]
        used = [i for i, g in enumerate(grads) if g is not None]
        if not used:
            return (None,) * (BEFORE_FACTORS + 2 * m)
        adapters = adapters_of(factors, ctx.scales)
        gradients: list[Tensor | None] = [None] * (2 * m)
        with without_autocast(own[0].device):
            group = LinearGroup(
                [ctx.weights[i] for i in used],
                [None] * len(used),
                [adapters[i] for i in used],
                ctx.dtype,
                factors=cast if len(used) == m else None,
            )
            lows = None if low is None else _columns(low, adapters, used)
            dx, a, b = group.backward(own, x, lows, wants_input=ctx.needs_input_grad[0])
            for i, of_a, of_b in zip(used, a, b, strict=True):
                gradients[i], gradients[m + i] = of_a, of_b
        needed = ctx.needs_input_grad[BEFORE_FACTORS:]
        return dx, *(None,) * (BEFORE_FACTORS - 1), *of_dtypes(gradients, factors, needed)


def _forward(
    group: LinearGroup, x: Tensor, prepared: Prepared | None, reference_call: ReferenceCall | None
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    return group.forward(x, prepared) if reference_call is None else group.forward_in_lockstep(x, reference_call)


def has_graph(*tensors: Tensor | None) -> bool:
    """Return whether autograd would record a function of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _columns(low: Tensor, adapters: Sequence[Adapter | None], used: Sequence[int]) -> Tensor:
    """Return the columns of l that belong to the layers `used`."""
    if len(used) == len(adapters):
        return low
    widths = [0 if adapter is None else adapter.a.shape[0] for adapter in adapters]
    parts = low.split(widths, dim=1)
    return torch.cat([parts[i] for i in used], dim=1)
