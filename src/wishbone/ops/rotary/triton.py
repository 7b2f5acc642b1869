r"""Rotary position embedding in Triton: one program a token, for all heads of query and key.

Each number is read once and written once. The derivative turns the other way: with the halves as in `reference.py`,

    dx1 = dy1 cos1 + dy2 sin2,        dx2 = dy2 cos2 - dy1 sin1

so only cos and sin are kept for the backward pass. Arithmetic is float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from wishbone.ops.launch_sizes import power_of_two

WARPS = 4


def rotary_triton(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return query and key, turned; as `rotary`."""
    turned: tuple[Tensor, Tensor] = _Rotary.apply(query, key, cos, sin)
    return turned


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return _turn(query, key, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, query_grad: Tensor, key_grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_turn(query_grad, key_grad, *ctx.saved_tensors, back=True), None, None


def _turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
    batch, _, tokens, width = query.shape
    out = []
    query, key = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key))
    for x in (query, key):
        out.append(x.new_empty(batch, tokens, x.shape[1], width).transpose(1, 2))
    if query.numel():
        _turn_kernel[(tokens, batch)](
            query,
            key,
            out[0],
            out[1],
            cos,
            sin,
            *query.stride()[:3],
            *key.stride()[:3],
            *out[0].stride()[:3],
            *out[1].stride()[:3],
            0 if cos.shape[0] == 1 else cos.stride(0),
            cos.stride(1),
            QUERY_HEADS=query.shape[1],
            KEY_HEADS=key.shape[1],
            HALF=cos.shape[2] // 2,
            REST=width - cos.shape[2],
            BACK=back,
            QUERY_BLOCK=power_of_two(query.shape[1]),
            KEY_BLOCK=power_of_two(key.shape[1]),
            HALF_BLOCK=power_of_two(cos.shape[2] // 2),
            REST_BLOCK=power_of_two(max(1, width - cos.shape[2])),
            num_warps=WARPS,
        )
    return out[0], out[1]


@triton.jit
def _turn_kernel(
    query_ptr,
    key_ptr,
    query_out_ptr,
    key_out_ptr,
    cos_ptr,
    sin_ptr,
    query_batch,
    query_head,
    query_token,
    key_batch,
    key_head,
    key_token,
    query_out_batch,
    query_out_head,
    query_out_token,
    key_out_batch,
    key_out_head,
    key_out_token,
    angle_batch,
    angle_token,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    BACK: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, HALF_BLOCK)
    angles = batch * angle_batch + token * angle_token + column
    inside = column < HALF
    cos1 = tl.load(cos_ptr + angles, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos2 = tl.load(cos_ptr + angles + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin1 = tl.load(sin_ptr + angles, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin2 = tl.load(sin_ptr + angles + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    _turn_heads(
        query_ptr + batch * query_batch + token * query_token,
        query_out_ptr + batch * query_out_batch + token * query_out_token,
        query_head,
        query_out_head,
        cos1,
        cos2,
        sin1,
        sin2,
        QUERY_HEADS,
        HALF,
        REST,
        BACK,
        QUERY_BLOCK,
        HALF_BLOCK,
        REST_BLOCK,
    )
    _turn_heads(
        key_ptr + batch * key_batch + token * key_token,
        key_out_ptr + batch * key_out_batch + token * key_out_token,
        key_head,
        key_out_head,
        cos1,
        cos2,
        sin1,
        sin2,
        KEY_HEADS,
        HALF,
        REST,
        BACK,
        KEY_BLOCK,
        HALF_BLOCK,
        REST_BLOCK,
    )


@triton.jit
def _turn_heads(
    x_ptr,
    y_ptr,
    x_step,
    y_step,
    cos1,
    cos2,
    sin1,
    sin2,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    BACK: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    """Turn the heads of one token of x into y."""
    head = tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS) & (column < HALF)
    x1 = tl.load(x_ptr + head * x_step + column, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + head * x_step + column + HALF, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        y1 = x1 * cos1 + x2 * sin2
        y2 = x2 * cos2 - x1 * sin1
    else:
        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2
    tl.store(y_ptr + head * y_step + column, y1, mask=inside)
    tl.store(y_ptr + head * y_step + column + HALF, y2, mask=inside)
    if REST > 0:
        column = tl.arange(0, REST_BLOCK)[None, :]
        inside = (head < HEADS) & (column < REST)
        rest = tl.load(x_ptr + head * x_step + column + 2 * HALF, mask=inside, other=0.0)
        tl.store(y_ptr + head * y_step + column + 2 * HALF, rest, mask=inside)
