"""The backward kernels of shared-prefix attention: the gradient of queries, then the gradients of keys and values.

Shapes and arguments are those of `kernels.py`. Both compute the scores of a block again from q, k and lse.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.kernel_parts import LOG2E
from wishbone.ops.prefix_attention.kernels import (
    ANY_VALUE,
    capped,
    head_tile,
    masked,
    queries_of_program,
    slope_of,
    sloped,
    tile_offsets,
    walk_of,
)


@triton.jit(do_not_specialize=ANY_VALUE)
def query_gradient(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    o_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    order_ptr,
    full_ptr,
    count_ptr,
    index_ptr,
    index_width,
    until_ptr,
    position_ptr,
    slope_ptr,
    stride_q_head,
    stride_q_token,
    stride_k_head,
    stride_k_token: tl.constexpr,
    stride_v_head,
    stride_v_token: tl.constexpr,
    stride_do_head,
    stride_do_token,
    stride_o_head,
    stride_o_token,
    stride_dq_head,
    stride_dq_token,
    tokens,
    scale,
    cap,
    window,
    group,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    SLOPED: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    PACK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write dq of a tile of queries, and delta = do . o of each, which `key_gradient` reads.

    Grid (H / PACK, T / TOKENS). The block lists are by block of queries.
    """
    first_head, m, head = queries_of_program(order_ptr, TOKENS, PACK)
    key_head = first_head // group
    columns = tl.arange(0, COLUMNS)
    q = tl.load(head_tile(q_ptr, head, stride_q_head, m, stride_q_token, SIZE))
    do = tl.load(head_tile(do_ptr, head, stride_do_head, m, stride_do_token, SIZE))
    lse = tl.load(lse_ptr + head.to(tl.int64) * tokens + m)
    o = tl.load(head_tile(o_ptr, head, stride_o_head, m, stride_o_token, SIZE))
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + head.to(tl.int64) * tokens + m, delta)
    k_ptr += key_head.to(tl.int64) * stride_k_head
    v_ptr += key_head.to(tl.int64) * stride_v_head
    k_tile = tile_offsets(columns, stride_k_token, SIZE)
    v_tile = tile_offsets(columns, stride_v_token, SIZE)
    unit = (1.0 if CAPPED else scale) * LOG2E
    per_distance = slope_of(slope_ptr, head[:, None], scale, SLOPED, CAPPED)
    dq = tl.zeros([TOKENS * PACK, SIZE], tl.float32)
    full, count, index_ptr = walk_of(full_ptr, count_ptr, index_ptr, index_width)
    first = tl.load(index_ptr) * COLUMNS
    for j in range(count):
        n = first + columns
        k = tl.load(k_ptr + first.to(tl.int64) * stride_k_token + k_tile)
        v = tl.load(v_ptr + first.to(tl.int64) * stride_v_token + v_tile)
        first = tl.load(index_ptr + tl.minimum(j + 1, count - 1)) * COLUMNS
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, slope = capped(s, scale, cap, CAPPED)
        s = sloped(s, m[:, None], n[None, :], position_ptr, per_distance, SLOPED)
        if j >= full:
            until = tl.load(until_ptr + n)
            s = masked(s, m[:, None], n[None, :], until[None, :], position_ptr, window, WINDOW)
        p = tl.exp2(s * unit - lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None]) * slope
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    dq = dq * scale
    tl.store(head_tile(dq_ptr, head, stride_dq_head, m, stride_dq_token, SIZE), dq.to(dq_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=ANY_VALUE)
def key_gradient(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    order_ptr,
    full_ptr,
    count_ptr,
    index_ptr,
    index_width,
    until_ptr,
    position_ptr,
    slope_ptr,
    stride_q_head,
    stride_q_token: tl.constexpr,
    stride_k_head,
    stride_k_token,
    stride_v_head,
    stride_v_token,
    stride_do_head,
    stride_do_token: tl.constexpr,
    stride_dk_head,
    stride_dk_token,
    stride_dv_head,
    stride_dv_token,
    tokens,
    scale,
    cap,
    window,
    group,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    SLOPED: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write dk and dv of COLUMNS keys of one key head, summed over the query heads that share it.

    Grid (K, T / COLUMNS). The block lists are by block of keys. One loop walks over them for each query head in turn.
    The two products that need no other come first, so that the tensor cores run twice in a block, not three times.
    """
    key_head = tl.program_id(0)
    n = tl.load(order_ptr + tl.program_id(1)) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.arange(0, TOKENS)
    k = tl.load(head_tile(k_ptr, key_head, stride_k_head, n, stride_k_token, SIZE))
    v = tl.load(head_tile(v_ptr, key_head, stride_v_head, n, stride_v_token, SIZE))
    q_tile = tile_offsets(rows, stride_q_token, SIZE)
    do_tile = tile_offsets(rows, stride_do_token, SIZE)
    until = tl.load(until_ptr + n)
    unit = (1.0 if CAPPED else scale) * LOG2E
    dk = tl.zeros([COLUMNS, SIZE], tl.float32)
    dv = tl.zeros([COLUMNS, SIZE], tl.float32)
    full, count, index_ptr = walk_of(full_ptr, count_ptr, index_ptr, index_width)
    first = tl.load(index_ptr) * TOKENS
    head = key_head * group
    j = 0
    for _ in range(count * group):
        m = first + rows
        q = tl.load(q_ptr + (head.to(tl.int64) * stride_q_head + first.to(tl.int64) * stride_q_token) + q_tile)
        do = tl.load(do_ptr + (head.to(tl.int64) * stride_do_head + first.to(tl.int64) * stride_do_token) + do_tile)
        lse = tl.load(lse_ptr + (head.to(tl.int64) * tokens + first) + rows)
        delta = tl.load(delta_ptr + (head.to(tl.int64) * tokens + first) + rows)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        s, slope = capped(s, scale, cap, CAPPED)
        per_distance = slope_of(slope_ptr, head, scale, SLOPED, CAPPED)
        s = sloped(s, m[None, :], n[:, None], position_ptr, per_distance, SLOPED)
        if j >= full:
            s = masked(s, m[None, :], n[:, None], until[:, None], position_ptr, window, WINDOW)
        last = j + 1 == count
        head += tl.where(last, 1, 0)
        j = tl.where(last, 0, j + 1)
        first = tl.load(index_ptr + j) * TOKENS
        p = tl.exp2(s * unit - lse[None, :])
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        ds = p * (dp - delta[None, :]) * slope
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    dk = dk * scale
    tl.store(head_tile(dk_ptr, key_head, stride_dk_head, n, stride_dk_token, SIZE), dk.to(dk_ptr.dtype.element_ty))
    tl.store(head_tile(dv_ptr, key_head, stride_dv_head, n, stride_dv_token, SIZE), dv.to(dv_ptr.dtype.element_ty))
