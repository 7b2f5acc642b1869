r"""Rotary position embedding in Triton: one program a token, for all heads of query and key.

Each element is read once and written once. The derivative turns the other way: with the pairs as in `reference.py`,

    dx1 = dy1 cos1 + dy2 sin2,        dx2 = dy2 cos2 - dy1 sin1

so only cos and sin are kept for the backward pass, in which inputs and outputs change places. Arithmetic is float32.

Arguments of the kernel, with B rows in the batch, T tokens, H heads and D elements in a head:

    query_ptr, key_ptr           what is turned, [B, H, T, D]; elements of one head of one token lie side by side
    query_out_ptr, key_out_ptr   what comes out, of the same shape and dtype
    cos_ptr, sin_ptr             [1 or B, T, angles], contiguous
    stride_..._batch, _head, _token   elements from one to the next
    stride_angle_batch, _token   the same for cos and sin; the first is 0 where all rows have the same angles
    QUERY_HEADS, KEY_HEADS       heads; KEY_HEADS may be 0
    HALF                         pairs of a head
    REST                         elements behind the pairs, which are copied
    ..._STEP, ..._GAP            where pair i lies in inputs, outputs and angles: at i STEP and i STEP + GAP
    BACK                         turn the other way
    ..._BLOCK                    powers of two that cover heads, pairs and the rest
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from wishbone.ops.launch_sizes import power_of_two
from wishbone.ops.rotary.pairs import Form, placements, turned_elements

WARPS = 4


def rotary_triton(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, form: Form = "halves"
) -> tuple[Tensor, Tensor]:
    """Return query and key, turned; as `rotary`."""
    turned: tuple[Tensor, Tensor] = _Rotary.apply(query, key, cos, sin, form)
    return turned


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, form: Form) -> tuple[Tensor, Tensor]:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.form = form
        return _turn(query, key, cos, sin, form, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, query_grad: Tensor, key_grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return *_turn(query_grad, key_grad, cos, sin, ctx.form, back=True), None, None, None


def _turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, form: Form, *, back: bool) -> tuple[Tensor, Tensor]:
    """Return query and key, turned by their angles, or back by them; cos and sin are contiguous."""
    batch, query_heads, tokens, width = query.shape
    key_heads, turned = key.shape[1], turned_elements(form, cos.shape[2])
    query, key = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key))
    query_out, key_out = (
        x.new_empty(batch, tokens, heads, width).transpose(1, 2)
        for x, heads in ((query, query_heads), (key, key_heads))
    )
    read, written, angles = placements(form, turned)
    if back:
        read, written = written, read
    if query.numel():
        stride_query_batch, stride_query_head, stride_query_token, _ = query.stride()
        stride_key_batch, stride_key_head, stride_key_token, _ = key.stride()
        stride_query_out_batch, stride_query_out_head, stride_query_out_token, _ = query_out.stride()
        stride_key_out_batch, stride_key_out_head, stride_key_out_token, _ = key_out.stride()
        stride_angle_batch, stride_angle_token, _ = cos.stride()
        _turn_kernel[(tokens, batch)](  # by position: keywords cost the host 15 % of a launch
            query,
            key,
            query_out,
            key_out,
            cos,
            sin,
            stride_query_batch,
            stride_query_head,
            stride_query_token,
            stride_key_batch,
            stride_key_head,
            stride_key_token,
            stride_query_out_batch,
            stride_query_out_head,
            stride_query_out_token,
            stride_key_out_batch,
            stride_key_out_head,
            stride_key_out_token,
            0 if cos.shape[0] == 1 else stride_angle_batch,
            stride_angle_token,
            QUERY_HEADS=query_heads,
            KEY_HEADS=key_heads,
            HALF=turned // 2,
            REST=width - turned,
            INPUT_STEP=read.step,
            INPUT_GAP=read.gap,
            OUTPUT_STEP=written.step,
            OUTPUT_GAP=written.gap,
            ANGLE_STEP=angles.step,
            ANGLE_GAP=angles.gap,
            BACK=back,
            QUERY_BLOCK=power_of_two(query_heads),
            KEY_BLOCK=power_of_two(max(1, key_heads)),
            HALF_BLOCK=power_of_two(turned // 2),
            REST_BLOCK=power_of_two(max(1, width - turned)),
            num_warps=WARPS,
        )
    return query_out, key_out


@triton.jit
def _turn_kernel(
    query_ptr,
    key_ptr,
    query_out_ptr,
    key_out_ptr,
    cos_ptr,
    sin_ptr,
    stride_query_batch,
    stride_query_head,
    stride_query_token,
    stride_key_batch,
    stride_key_head,
    stride_key_token,
    stride_query_out_batch,
    stride_query_out_head,
    stride_query_out_token,
    stride_key_out_batch,
    stride_key_out_head,
    stride_key_out_token,
    stride_angle_batch,
    stride_angle_token,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    INPUT_STEP: tl.constexpr,
    INPUT_GAP: tl.constexpr,
    OUTPUT_STEP: tl.constexpr,
    OUTPUT_GAP: tl.constexpr,
    ANGLE_STEP: tl.constexpr,
    ANGLE_GAP: tl.constexpr,
    BACK: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    """Turn all heads of one token; grid (T, B)."""
    token = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    pair = tl.arange(0, HALF_BLOCK)
    inside = pair < HALF
    first = batch * stride_angle_batch + token * stride_angle_token + pair * ANGLE_STEP
    cos1 = tl.load(cos_ptr + first, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos2 = tl.load(cos_ptr + first + ANGLE_GAP, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin1 = tl.load(sin_ptr + first, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin2 = tl.load(sin_ptr + first + ANGLE_GAP, mask=inside, other=0.0).to(tl.float32)[None, :]
    _turn_heads(
        query_ptr + batch * stride_query_batch + token * stride_query_token,
        query_out_ptr + batch * stride_query_out_batch + token * stride_query_out_token,
        stride_query_head,
        stride_query_out_head,
        cos1,
        cos2,
        sin1,
        sin2,
        QUERY_HEADS,
        HALF,
        REST,
        INPUT_STEP,
        INPUT_GAP,
        OUTPUT_STEP,
        OUTPUT_GAP,
        BACK,
        QUERY_BLOCK,
        HALF_BLOCK,
        REST_BLOCK,
    )
    if KEY_HEADS > 0:
        _turn_heads(
            key_ptr + batch * stride_key_batch + token * stride_key_token,
            key_out_ptr + batch * stride_key_out_batch + token * stride_key_out_token,
            stride_key_head,
            stride_key_out_head,
            cos1,
            cos2,
            sin1,
            sin2,
            KEY_HEADS,
            HALF,
            REST,
            INPUT_STEP,
            INPUT_GAP,
            OUTPUT_STEP,
            OUTPUT_GAP,
            BACK,
            KEY_BLOCK,
            HALF_BLOCK,
            REST_BLOCK,
        )


@triton.jit
def _turn_heads(
    x_ptr,
    y_ptr,
    stride_x_head,
    stride_y_head,
    cos1,
    cos2,
    sin1,
    sin2,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    INPUT_STEP: tl.constexpr,
    INPUT_GAP: tl.constexpr,
    OUTPUT_STEP: tl.constexpr,
    OUTPUT_GAP: tl.constexpr,
    BACK: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    """Turn the heads of one token of x into y, and copy the rest of each."""
    head = tl.arange(0, BLOCK)[:, None]
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS) & (pair < HALF)
    x_first = x_ptr + head * stride_x_head + pair * INPUT_STEP
    x1 = tl.load(x_first, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(x_first + INPUT_GAP, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        y1 = x1 * cos1 + x2 * sin2
        y2 = x2 * cos2 - x1 * sin1
    else:
        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2
    y_first = y_ptr + head * stride_y_head + pair * OUTPUT_STEP
    tl.store(y_first, y1, mask=inside)
    tl.store(y_first + OUTPUT_GAP, y2, mask=inside)
    if REST > 0:
        column = 2 * HALF + tl.arange(0, REST_BLOCK)[None, :]
        inside = (head < HEADS) & (column < 2 * HALF + REST)
        rest = tl.load(x_ptr + head * stride_x_head + column, mask=inside, other=0.0)
        tl.store(y_ptr + head * stride_y_head + column, rest, mask=inside)
