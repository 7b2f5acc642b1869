"""The forward kernel of shared-prefix attention, and what it shares with the kernels in `gradient_kernels.py`.

Each program walks over the blocks that hold a visible pair, the ones that are visible throughout first. In the others
query m sees key n where n <= m < until_n, which is one comparison of unsigned integers: m - n < until_n - n. The length
of a row is a multiple of every block size, so no load needs a guard. The index of the next block is loaded one block
ahead, so that its keys do not have to wait for it. Log-sum-exps are to base 2.

Shapes, with T tokens, H query heads, K key heads and D = SIZE elements in a head:

    q, o, do, dq          [H, T, D]     float32, bfloat16 or float16
    k, v, dk, dv          [K, T, D]     the same dtype; query head h reads key head h // group
    lse, delta            [H, T]        float32, contiguous

Arguments of all three kernels:

    q_ptr ... dv_ptr      first element of a tensor
    stride_q_head ...     elements from one head to the next
    stride_q_token ...    elements from one token to the next; elements of one head of one token lie side by side
    order_ptr             [programs] int32: the block of each program, those with long walks first
    full_ptr              [programs] int32: how many of the blocks that a program walks over are visible throughout
    count_ptr             [programs] int32: how many it walks over
    index_ptr             [programs, index_width] int32: which these are
    until_ptr             [T] int32: the first token that no longer sees this one
    position_ptr          [T] int32: position in the sequence of stem and branch
    slope_ptr             [H] float32: factor on the distance from query to key, read if SLOPED
    tokens                T
    scale                 factor on q.k
    cap                   bound of soft-capped scores, read if CAPPED
    window                positions that a query sees back, read if WINDOW
    group                 H / K
    SIZE                  D, a power of two from 16 to 256
    SLOPED                whether scores have an addend by distance
    PRECISION             of matrix products of float32
    TOKENS, COLUMNS       tokens that ask, and keys, of a block
    PACK                  query heads of a tile of queries, a power of two that divides H / K

Query heads that share a key head also share tiles: TOKENS * PACK rows read each key once, while a block whose mask
decides has few tokens. Programs lie in a grid (heads, blocks), so that of all heads the long walks begin first.

The strides of what a program walks over are constants of the kernel, so that the addresses in the loop are cheap.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.kernel_parts import LOG2E

ANY_VALUE = ["index_width"]
"""Arguments that change with the row: a value that 16 divides makes no kernel of its own."""

UNSEEN = tl.constexpr(-(2.0**100))
"""Score of a key that is not seen: a power of two, so that its products are exact, whether fused with a sum or not."""


@triton.jit
def head_tile(ptr, head, stride_head, token, stride_token, SIZE: tl.constexpr):
    """Return pointers [rows, SIZE] to the elements of a head of a token in each row; one head may be given for all."""
    first = ptr + head.to(tl.int64) * stride_head + token.to(tl.int64) * stride_token
    return first[:, None] + tl.arange(0, SIZE)[None, :]


@triton.jit
def tile_offsets(token, stride_token, SIZE: tl.constexpr):
    """Return offsets [tokens, SIZE] of the elements of one head of some tokens from those of the first."""
    return token[:, None] * stride_token + tl.arange(0, SIZE)[None, :]


@triton.jit
def queries_of_program(order_ptr, TOKENS: tl.constexpr, PACK: tl.constexpr):
    """Return the first head of a program, and token and head of each of its rows [TOKENS * PACK]."""
    first_token = tl.load(order_ptr + tl.program_id(1)) * TOKENS
    first_head = tl.program_id(0) * PACK
    row = tl.arange(0, TOKENS * PACK)
    return first_head, first_token + row // PACK, first_head + row % PACK


@triton.jit
def walk_of(full_ptr, count_ptr, index_ptr, index_width):
    """Return how many blocks are full and how many there are in the walk of a program, and the list of them."""
    walk = tl.program_id(1)
    return tl.load(full_ptr + walk), tl.load(count_ptr + walk), index_ptr + walk * index_width


@triton.jit
def capped(s, scale, cap, CAPPED: tl.constexpr):
    """Return cap tanh(scale s / cap) and its slope, or s, to be scaled later, and 1; tanh x is 1 - 2 / (e^(2x) + 1)."""
    slope = 1.0
    if CAPPED:
        bent = 1 - 2 / (tl.exp(2 * (s * scale / cap)) + 1)
        s = cap * bent
        slope = 1 - bent * bent
    return s, slope


@triton.jit
def masked(s, m, n, until, position_ptr, window, WINDOW: tl.constexpr):
    """Return scores s with UNSEEN where query m does not see key n; m, n and until broadcast to the shape of s."""
    seen = (m - n).to(tl.uint32) < (until - n).to(tl.uint32)
    if WINDOW:
        seen = seen & (tl.load(position_ptr + m) - tl.load(position_ptr + n) < window)
    return tl.where(seen, s, UNSEEN)


@triton.jit
def sloped(s, m, n, position_ptr, slope, SLOPED: tl.constexpr):
    """Return scores s with slope (pos_n - pos_m) added, in the unit of s; m and n broadcast to the shape of s."""
    if SLOPED:
        s += slope * (tl.load(position_ptr + n) - tl.load(position_ptr + m)).to(tl.float32)
    return s


@triton.jit
def slope_of(slope_ptr, head, scale, SLOPED: tl.constexpr, CAPPED: tl.constexpr):
    """Return the slope of a head, or of many, in the unit of scores that are to be scaled later; 0 without slopes."""
    slope = 0.0
    if SLOPED:
        slope = tl.load(slope_ptr + head) / (1.0 if CAPPED else scale)
    return slope


@triton.jit(do_not_specialize=ANY_VALUE)
def attend(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    exact_ptr,
    change_ptr,
    lse_ptr,
    order_ptr,
    full_ptr,
    count_ptr,
    index_ptr,
    index_width,
    until_ptr,
    position_ptr,
    slope_ptr,
    sink_ptr,
    stride_q_head,
    stride_q_token,
    stride_k_head,
    stride_k_token: tl.constexpr,
    stride_v_head,
    stride_v_token: tl.constexpr,
    stride_o_head,
    stride_o_token,
    tokens,
    scale,
    cap,
    window,
    group,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    SLOPED: tl.constexpr,
    SINK: tl.constexpr,
    EXACT: tl.constexpr,
    CHANGE: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    PACK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the outputs o of a tile of queries and their log-sum-exps.

    With EXACT, exact_ptr [H, T, D] float32 gets the outputs before they are rounded. With CHANGE it holds those of the
    reference, and change_ptr [H, T, D], in the dtype of o, gets what these outputs differ by, rounded by itself. Both
    lie in memory as o does.

    Grid (H / PACK, T / TOKENS). The block lists are by block of queries. With SINK, sink_ptr [H] float32 is a score of
    each head that every query sees, without a value; log-sum-exps contain it, so the backward kernels need not know.
    """
    ROWS: tl.constexpr = TOKENS * PACK
    first_head, m, head = queries_of_program(order_ptr, TOKENS, PACK)
    key_head = first_head // group
    columns = tl.arange(0, COLUMNS)
    q = tl.load(head_tile(q_ptr, head, stride_q_head, m, stride_q_token, SIZE))
    k_ptr += key_head.to(tl.int64) * stride_k_head
    v_ptr += key_head.to(tl.int64) * stride_v_head
    k_tile = tile_offsets(columns, stride_k_token, SIZE)
    v_tile = tile_offsets(columns, stride_v_token, SIZE)
    unit = (1.0 if CAPPED else scale) * LOG2E
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if SINK:
        top = tl.zeros([ROWS], tl.float32) + tl.load(sink_ptr + head) * LOG2E
        total += 1.0
    slope = slope_of(slope_ptr, head[:, None], scale, SLOPED, CAPPED)
    out = tl.zeros([ROWS, SIZE], tl.float32)
    full, count, index_ptr = walk_of(full_ptr, count_ptr, index_ptr, index_width)
    first = tl.load(index_ptr) * COLUMNS
    for j in range(count):
        n = first + columns
        k = tl.load(k_ptr + first.to(tl.int64) * stride_k_token + k_tile)
        v = tl.load(v_ptr + first.to(tl.int64) * stride_v_token + v_tile)
        first = tl.load(index_ptr + tl.minimum(j + 1, count - 1)) * COLUMNS
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, _ = capped(s, scale, cap, CAPPED)
        s = sloped(s, m[:, None], n[None, :], position_ptr, slope, SLOPED)
        if j >= full:
            until = tl.load(until_ptr + n)
            s = masked(s, m[:, None], n[None, :], until[None, :], position_ptr, window, WINDOW)
        new_top = tl.maximum(top, tl.max(s, 1) * unit)
        p = tl.exp2(s * unit - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        top = new_top
    out = out / total[:, None]
    tl.store(head_tile(o_ptr, head, stride_o_head, m, stride_o_token, SIZE), out.to(o_ptr.dtype.element_ty))
    if EXACT:
        tl.store(head_tile(exact_ptr, head, stride_o_head, m, stride_o_token, SIZE), out)
    if CHANGE:
        exact = tl.load(head_tile(exact_ptr, head, stride_o_head, m, stride_o_token, SIZE))
        change = tl.where(out == exact, 0.0, out - exact)  # 0 also if the quotient is fused with the difference
        change_tile = head_tile(change_ptr, head, stride_o_head, m, stride_o_token, SIZE)
        tl.store(change_tile, change.to(change_ptr.dtype.element_ty))
    tl.store(lse_ptr + head.to(tl.int64) * tokens + m, top + tl.log2(total))
