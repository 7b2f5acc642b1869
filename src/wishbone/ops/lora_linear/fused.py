"""A group of linear layers as one function of autograd, which keeps the shared input once.

Kept for the backward pass: x [T, K] where some A is trained, l [T, sum of r_i] where some B is, and nothing else that
grows with T; of the factors also what they were cast to. The equations are in `group.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wishbone.ops.frozen_linear import FrozenWeight, Prepared
from wishbone.ops.lora_linear.group import Adapter, LinearGroup, compute_dtype


def lora_linears(
    x: Tensor,
    weights: Sequence[FrozenWeight],
    biases: Sequence[Tensor | None],
    adapters: Sequence[Adapter | None],
    *,
    prepared: Prepared | None = None,
) -> tuple[Tensor, ...]:
    """Return `x W_i^T + b_i + s_i (x A_i^T) B_i^T` for each of the layers that share `x`.

    Args:
        x: [..., K]; with autocast on it is cast to autocast's dtype first.
        weights: frozen W_i [N_i, K], in forms that take the dtype of `x`.
        biases: frozen b_i [N_i] or None.
        adapters: an adapter or None for each weight. A and B get their gradients in their own dtype, from products in
            float32 or better.
        prepared: what `prepare` of the first weight makes of `x` [T, K], where it was made together with x.

    Returns:
        [..., N_i] for each layer. Without a graph, outputs of weights in one buffer are views of one tensor.
    """
    x = x.to(compute_dtype(x))
    rows = x.reshape(-1, x.shape[-1])
    factors = [adapter.a if adapter else None for adapter in adapters]
    factors += [adapter.b if adapter else None for adapter in adapters]
    scales = [adapter.scale if adapter else 1.0 for adapter in adapters]
    with without_autocast(x.device):
        if has_graph(rows, *factors):
            outputs: tuple[Tensor, ...] = _LoraLinears.apply(rows, prepared, weights, biases, scales, *factors)
        else:
            with torch.no_grad():
                outputs, _ = LinearGroup(weights, biases, adapters, x.dtype, join=True).forward(rows, prepared)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        prepared: Prepared | None,
        weights: Sequence[FrozenWeight],
        biases: Sequence[Tensor | None],
        scales: Sequence[float],
        *factors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        m = len(weights)
        trains_a, trains_b = (any(ctx.needs_input_grad[5 + first : 5 + first + m]) for first in (0, m))
        group = LinearGroup(weights, biases, adapters_of(factors, scales), x.dtype)
        outputs, low = group.forward(x, prepared)
        ctx.save_for_backward(x if trains_a else None, low if trains_b else None, *group.factors, *factors)
        ctx.weights, ctx.scales, ctx.dtype = weights, scales, x.dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        m = len(ctx.weights)
        x, low, *saved = ctx.saved_tensors
        cast, factors = saved[: 1 + m], saved[1 + m :]
        own = [g.contiguous() for g in grads if g is not None]
        live = [i for i, g in enumerate(grads) if g is not None]
        if not live:
            return (None,) * (5 + 2 * m)
        adapters = adapters_of(factors, ctx.scales)
        dx: Tensor | None = None
        gradients: list[Tensor | None] = [None] * (2 * m)
        with without_autocast(own[0].device):
            group = LinearGroup(
                [ctx.weights[i] for i in live],
                [None] * len(live),
                [adapters[i] for i in live],
                ctx.dtype,
                factors=cast if len(live) == m else None,
            )
            h = group.down(own)
            if ctx.needs_input_grad[0]:
                dx = group.input_gradient(own, h)
            if low is not None:
                lows = _columns(low, adapters, live)
                for i, gradient in zip(live, group.b_gradients(own, lows), strict=True):
                    gradients[m + i] = gradient
            if x is not None:
                for i, gradient in zip(live, group.a_gradients(h, x), strict=True):
                    gradients[i] = gradient
        needed = ctx.needs_input_grad[5:]
        return dx, None, None, None, None, *of_dtypes(gradients, factors, needed)


def adapters_of(factors: Sequence[Tensor | None], scales: Sequence[float]) -> list[Adapter | None]:
    """Return the adapters of factors A_1 .. A_m, B_1 .. B_m and their scales; None where there is none."""
    m = len(scales)
    return [
        None if a is None or b is None else Adapter(a, b, scale)
        for a, b, scale in zip(factors[:m], factors[m:], scales, strict=True)
    ]


def of_dtypes(
    gradients: Sequence[Tensor | None], parameters: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients that are needed, in the dtypes of their parameters."""
    return [
        gradient.to(parameter.dtype) if need and gradient is not None and parameter is not None else None
        for gradient, parameter, need in zip(gradients, parameters, needed, strict=True)
    ]


def has_graph(*tensors: Tensor | None) -> bool:
    """Return whether autograd would record a function of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Context in which tensors keep the dtype they have."""
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield


def _columns(low: Tensor, adapters: Sequence[Adapter | None], live: Sequence[int]) -> Tensor:
    """Columns of l that belong to the layers `live`."""
    if len(live) == len(adapters):
        return low
    widths = [0 if adapter is None else adapter.a.shape[0] for adapter in adapters]
    parts = low.split(widths, dim=1)
    return torch.cat([parts[i] for i in live], dim=1)
