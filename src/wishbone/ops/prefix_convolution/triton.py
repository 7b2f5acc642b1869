"""Launches of the kernels, and the convolution as one function with a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wishbone.ops.launch_sizes import power_of_two, tiles
from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.prefix_convolution.kernels import convolve_rows, spread_gradients
from wishbone.ops.prefix_convolution.neighbours import Neighbours, neighbours_of

ROWS, COLUMNS = 32, 128
"""Tokens and channels of one program."""


def prefix_convolution_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None, layout: PrefixLayout, *, silu: bool
) -> Tensor:
    """Return the causal convolution of one packed row in which every branch continues its stem.

    Sums are float32.

    Args:
        x: [tokens, channels].
        weight: [channels, taps].
        bias: [channels] or None.
        layout: where the documents lie; `layout.length` equals `tokens`.
        silu: whether x sigmoid(x) follows.

    Returns:
        [tokens, channels], dtype of `x`.

    Raises:
        ValueError: the row and its layout differ in length.
    """
    if x.shape[0] != layout.length:
        raise ValueError(f"an input of shape {tuple(x.shape)} is not one row of {layout.length} tokens")
    out: Tensor = _Convolution.apply(x, weight, bias, neighbours_of(layout, weight.shape[1], x.device), silu)
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, neighbours: Neighbours, silu: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.neighbours, ctx.silu = neighbours, silu
        return _convolve(x, weight, bias, neighbours, silu, None)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias = ctx.saved_tensors
        d_out = d_out if d_out.stride(-1) == 1 else d_out.contiguous()
        d_total = _convolve(x, weight, bias, ctx.neighbours, True, d_out) if ctx.silu else d_out
        d_weight = d_bias = None
        if ctx.needs_input_grad[1]:
            d_weight = _weight_gradient(x, d_total, ctx.neighbours.before).to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            d_bias = d_total.sum(0, dtype=torch.float32).to(bias.dtype)
        d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        (tokens, channels), after = x.shape, ctx.neighbours.after
        if x.numel():
            columns = min(COLUMNS, power_of_two(channels))
            spread_gradients[(tiles(tokens, ROWS), tiles(channels, columns))](
                d_total, weight.contiguous(), after, d_x, tokens, channels, d_total.stride(0), MOST=after.shape[1],
                TAPS=weight.shape[1], ROWS=ROWS, COLUMNS=columns,
            )  # fmt: skip
        return d_x, d_weight, d_bias, None, None


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, neighbours: Neighbours, silu: bool, d_out: Tensor | None
) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tokens, channels = x.shape
    if x.numel():
        columns = min(COLUMNS, power_of_two(channels))
        convolve_rows[(tiles(tokens, ROWS), tiles(channels, columns))](
            x, weight.contiguous(), bias, neighbours.before, d_out, out, tokens, channels, x.stride(0),
            0 if d_out is None else d_out.stride(0), BIAS=bias is not None, SILU=silu, BACKWARD=d_out is not None,
            TAPS=weight.shape[1], ROWS=ROWS, COLUMNS=columns,
        )  # fmt: skip
    return out


def _weight_gradient(x: Tensor, d_total: Tensor, before: Tensor) -> Tensor:
    """The gradient of the weights, [channels, taps], in float32; they are frozen where adapters are trained."""
    taps = [torch.einsum("tc,tc->c", x.float(), d_total.float())]
    for source in before:
        read = x.index_select(0, source.clamp(min=0)).masked_fill((source < 0)[:, None], 0)  # nothing waits for a count
        taps.append(torch.einsum("tc,tc->c", read.float(), d_total.float()))
    return torch.stack(taps[::-1], 1)
