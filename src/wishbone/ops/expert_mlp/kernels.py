"""Triton kernels over rows that are sorted by expert.

`ends_ptr` [experts] int32 says where the rows of each expert end. Strides are elements from one row (or expert, or
rank) to the next; the elements of a row lie side by side unless a stride says otherwise. Arithmetic is float32.
Triton's interpreter cannot multiply bfloat16, so it gets float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.gated_mlp.kernels import gradients
from wishbone.ops.kernel_parts import load_row, part_of_row
from wishbone.ops.low_rank_add.triton import rounded_at_random


@triton.jit
def add_by_expert(
    y_ptr,
    bias_ptr,
    low_ptr,
    factor_ptr,
    ends_ptr,
    experts,
    stride_y_row,
    stride_bias_expert,
    stride_low_row,
    stride_factor_expert,
    stride_factor_rank,
    stride_factor_column,
    columns,
    rank,
    BIAS: tl.constexpr,
    UNSEEN: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Add the bias and l F of its expert to a tile of y; grid (S / ROWS + experts, N / COLUMNS).

    The tiles of an expert begin at its first row. A program finds its expert by counting the tiles of those before;
    programs beyond the last tile do nothing.

    Args:
        y_ptr: [S, N], bfloat16 or float16, overwritten.
        bias_ptr: [experts, N], read if BIAS.
        low_ptr: l [S, rank], in the dtype of y.
        factor_ptr: F [experts, rank, N], in the dtype of y.
        ends_ptr: [experts].
        UNSEEN: bits of float32 that the dtype of y does not have, as a mask.
        EXPERTS: a power of two not below `experts`.
        ROWS, COLUMNS: of a tile of y.
        RANKS: how much of the rank is multiplied at a time.
        INTERPRETED: whether Triton's interpreter runs the kernel.
    """
    tile = tl.program_id(0)
    each = tl.arange(0, EXPERTS)
    end = tl.load(ends_ptr + each, mask=each < experts, other=0)
    start = tl.load(ends_ptr + each - 1, mask=(each > 0) & (each < experts), other=0)
    count = tl.where(each < experts, (end - start + ROWS - 1) // ROWS, 0)
    before = tl.cumsum(count, 0) - count
    mine = (before <= tile) & (tile < before + count)
    expert = tl.sum(tl.where(mine, each, 0)).to(tl.int64)
    first = tl.sum(tl.where(mine, start + (tile - before) * ROWS, 0))
    last = tl.sum(tl.where(mine, end, 0))
    row = (first.to(tl.int64) + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < last) & (column < columns)
    at = y_ptr + row * stride_y_row + column
    dtype = y_ptr.dtype.element_ty
    exact = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + expert * stride_bias_expert + column, mask=column < columns, other=0.0)
        exact = (exact + bias.to(tl.float32)).to(dtype).to(tl.float32)
    addend = tl.zeros((ROWS, COLUMNS), tl.float32)
    factor_ptr += expert * stride_factor_expert
    for start_rank in range(0, rank, RANKS):
        r = start_rank + tl.arange(0, RANKS)
        left = low_ptr + row * stride_low_row + r[None, :]
        right = factor_ptr + r[:, None] * stride_factor_rank + column * stride_factor_column
        left = tl.load(left, mask=(row < last) & (r[None, :] < rank), other=0.0)
        right = tl.load(right, mask=(r[:, None] < rank) & (column < columns), other=0.0)
        if INTERPRETED:
            left, right = left.to(tl.float32), right.to(tl.float32)
        addend = tl.dot(left, right, addend)
    tl.store(at, rounded_at_random(exact, addend, UNSEEN).to(dtype), mask=inside)


@triton.jit
def outer(
    left_ptr,
    right_ptr,
    out_ptr,
    ends_ptr,
    stride_left_row,
    stride_right_row,
    n,
    k,
    ROWS: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write a tile of the sum of left_s right_s^T over one expert's rows; grid (experts, n / TILE_N, k / TILE_K).

    Args:
        left_ptr: [S, n].
        right_ptr: [S, k].
        out_ptr: [experts, n, k] float32, contiguous.
        ends_ptr: [experts].
        ROWS: that are multiplied at a time.
        TILE_N, TILE_K: of a tile.
        INTERPRETED: whether Triton's interpreter runs the kernel.
    """
    expert = tl.program_id(0)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends_ptr + expert)
    at_n = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    at_k = tl.program_id(2) * TILE_K + tl.arange(0, TILE_K)
    total = tl.zeros((TILE_N, TILE_K), tl.float32)
    for first in range(start, end, ROWS):
        row = first + tl.arange(0, ROWS)
        offset = row.to(tl.int64)[:, None]
        left = tl.load(
            left_ptr + offset * stride_left_row + at_n[None, :],
            mask=(row[:, None] < end) & (at_n[None, :] < n),
            other=0.0,
        )
        right = tl.load(
            right_ptr + offset * stride_right_row + at_k[None, :],
            mask=(row[:, None] < end) & (at_k[None, :] < k),
            other=0.0,
        )
        if INTERPRETED:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(tl.trans(left), right, total)
    out_ptr += expert.to(tl.int64) * n * k
    tl.store(out_ptr + at_n[:, None] * k + at_k[None, :], total, mask=(at_n[:, None] < n) & (at_k[None, :] < k))


@triton.jit
def gather(rows_ptr, row_ptr, share_ptr, out_ptr, stride_row, columns, k, SHARE: tl.constexpr, BLOCK: tl.constexpr):
    """Write BLOCK columns of the sum of one token's rows, times its shares if SHARE; grid (T, K / BLOCK).

    Args:
        rows_ptr: [S, columns].
        row_ptr: [T, k] int64, the row of each choice.
        share_ptr: [T, k], read if SHARE.
        out_ptr: [T, columns], contiguous.
    """
    token, column, inside = part_of_row(columns, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for j in range(k):
        part = load_row(rows_ptr, tl.load(row_ptr + token * k + j), stride_row, column, inside)
        if SHARE:
            part *= tl.load(share_ptr + token * k + j).to(tl.float32)
        total += part
    tl.store(out_ptr + token * columns + column, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def dots(left_ptr, right_ptr, out_ptr, stride_left_row, stride_right_row, columns, BLOCK: tl.constexpr):
    """Write the dot product of one row of left and right [S, columns]; out [S] float32; grid (S,)."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        left = load_row(left_ptr, row, stride_left_row, column, column < columns)
        total += left * load_row(right_ptr, row, stride_right_row, column, column < columns)
    tl.store(out_ptr + row, tl.sum(total))


@triton.jit
def weighted_gate(
    unweighted_ptr,
    u_ptr,
    share_ptr,
    choice_ptr,
    dots_ptr,
    stride_u_row,
    columns,
    SILU: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write du of one row over u, and the gradient of its share; with KEEP h over W^T do; grid (S,).

    Args:
        unweighted_ptr: W^T do [S, columns], contiguous: the gradient of h before it is multiplied with the share.
        u_ptr: [S, 2 columns], g and v side by side.
        share_ptr: the shares of all choices.
        choice_ptr: [S] int64, the choice of each row.
        dots_ptr: [S] float32: (W^T do) . h.
        SILU: whether the activation is SiLU, otherwise the tanh approximation of GELU.
    """
    row = tl.program_id(0).to(tl.int64)
    share = tl.load(share_ptr + tl.load(choice_ptr + row)).to(tl.float32)
    dtype = unweighted_ptr.dtype.element_ty
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        own = load_row(unweighted_ptr, row, columns, column, inside)
        g = load_row(u_ptr, row, stride_u_row, column, inside)
        v = load_row(u_ptr + columns, row, stride_u_row, column, inside)
        product, gate_gradient, value_gradient = gradients(own * share, g, v, SILU)
        total += own * product
        tl.store(u_ptr + row * stride_u_row + column, gate_gradient, mask=inside)
        tl.store(u_ptr + row * stride_u_row + columns + column, value_gradient, mask=inside)
        if KEEP:
            tl.store(unweighted_ptr + row * columns + column, product.to(dtype), mask=inside)
    tl.store(dots_ptr + row, tl.sum(total))


@triton.jit
def clamped(u_ptr, h_ptr, stride_u_row, columns, slope, limit, BACKWARD: tl.constexpr, BLOCK: tl.constexpr):
    """Write h of BLOCK columns of one row; with BACKWARD h_ptr holds dh before, and du is written over u.

    Grid (S, I / BLOCK). `gate.py` has the equations.

    Args:
        u_ptr: [S, 2 columns], g and v in turn.
        h_ptr: [S, columns], contiguous.
    """
    row, column, inside = part_of_row(columns, BLOCK)
    at = u_ptr + row * stride_u_row + 2 * column
    h_at = h_ptr + row * columns + column
    g = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(at + 1, mask=inside, other=0.0).to(tl.float32)
    m = tl.minimum(g, limit)
    share = tl.sigmoid(slope * m)
    shifted = tl.minimum(tl.maximum(v, -limit), limit) + 1
    if BACKWARD:
        dh = tl.load(h_at, mask=inside, other=0.0).to(tl.float32)
        dg = tl.where(g <= limit, dh * shifted * share * (1 + slope * m * (1 - share)), 0.0)
        dv = tl.where(tl.abs(v) <= limit, dh * m * share, 0.0)
        tl.store(at, dg, mask=inside)
        tl.store(at + 1, dv, mask=inside)
    tl.store(h_at, m * share * shifted, mask=inside)


@triton.jit
def scaled_rows(codes_ptr, scale_ptr, out_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write a tile of codes times the scale of their row; grid (rows / ROWS, columns / COLUMNS).

    Args:
        codes_ptr: [rows, columns] e4m3 or int8, contiguous.
        scale_ptr: [rows] float32.
        out_ptr: [rows, columns], contiguous.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = (row * columns)[:, None] + column[None, :]
    scale = tl.load(scale_ptr + row, mask=row < rows, other=0.0)
    exact = tl.load(codes_ptr + at, mask=inside).to(tl.float32) * scale[:, None]
    tl.store(out_ptr + at, exact.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rotated_rows(
    codes_ptr,
    scale_ptr,
    signs_ptr,
    out_ptr,
    rows,
    columns,
    TURN: tl.constexpr,
    ROWS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write a tile of (codes H) times the scale of their row; grid (rows / ROWS, columns / TURN).

    Args:
        codes_ptr: [rows, columns] int8, contiguous; TURN divides columns.
        scale_ptr: [rows] float32.
        signs_ptr: H [TURN, TURN], float16.
        out_ptr: [rows, columns], contiguous.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, TURN)
    inside = (row < rows)[:, None]
    place = (row * columns)[:, None] + (tl.program_id(1) * TURN + at)[None, :]
    signs = tl.load(signs_ptr + at[:, None] * TURN + at[None, :])
    codes = tl.load(codes_ptr + place, mask=inside, other=0).to(signs.dtype)
    if INTERPRETED:
        codes, signs = codes.to(tl.float32), signs.to(tl.float32)
    exact = tl.dot(codes, signs) * tl.load(scale_ptr + row, mask=row < rows, other=0.0)[:, None]
    tl.store(out_ptr + place, exact.to(out_ptr.dtype.element_ty), mask=inside)
