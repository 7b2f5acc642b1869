"""y += l F in Triton: one pass over y, 4 bytes an element, 8 with a base and a total; l F stays in registers.

The equation and the rounding are in `reference.py`; addends are float32 sums of products of 16-bit numbers. Triton's
interpreter cannot multiply bfloat16, so it gets float32 factors.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wishbone.ops.launch_sizes import power_of_two, tiles
from wishbone.ops.low_rank_add.reference import MULTIPLIERS, unseen_bits

ROWS, COLUMNS, WARPS = 32, 128, 4
"""A tile of y, and warps of a program; the fastest of five on an H200 (docs/log.md)."""
RANKS = 64
"""Ranks that are multiplied at a time."""
FIRST, SECOND = (tl.constexpr(multiplier) for multiplier in MULTIPLIERS)


def add_low_rank_triton_(
    y: Tensor, low: Tensor, factor: Tensor, base: Tensor | None = None, total: Tensor | None = None
) -> Tensor:
    """Add low @ factor to y in place, and a base to both; as `add_low_rank_`."""
    (rows, columns), rank = y.shape, low.shape[1]
    stride_y_row, stride_y_column = y.stride()
    stride_low_row, stride_low_rank = low.stride()
    stride_factor_rank, stride_factor_column = factor.stride()
    stride_base_row, stride_base_column = (y if base is None else base).stride()
    stride_total_row, stride_total_column = (y if total is None else total).stride()
    if rows and columns:
        grid = tiles(rows, ROWS), tiles(columns, COLUMNS)
        add_low_rank[grid if base is None else grid[::-1]](
            y,
            low,
            factor,
            y if base is None else base,
            y if total is None else total,
            stride_y_row,
            stride_y_column,
            stride_low_row,
            stride_low_rank,
            stride_factor_rank,
            stride_factor_column,
            stride_base_row,
            stride_base_column,
            stride_total_row,
            stride_total_column,
            rows,
            columns,
            rank,
            BASE=base is not None,
            TOTAL=total is not None,
            UNSEEN=unseen_bits(y.dtype),
            TERMS=tiles(rank, RANKS),
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            RANKS=min(RANKS, max(16, power_of_two(rank))),
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=WARPS,
        )
    return y


@triton.jit
def add_low_rank(
    y_ptr,
    low_ptr,
    factor_ptr,
    base_ptr,
    total_ptr,
    stride_y_row,
    stride_y_column,
    stride_low_row,
    stride_low_rank,
    stride_factor_rank,
    stride_factor_column,
    stride_base_row,
    stride_base_column,
    stride_total_row,
    stride_total_column,
    rows,
    columns,
    rank,
    BASE: tl.constexpr,
    TOTAL: tl.constexpr,
    UNSEEN: tl.constexpr,
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Add l F to a tile of y, and the base to both if BASE; grid (rows / ROWS, columns / COLUMNS).

    With a base the grid is turned: tiles of a row run side by side, which an H200 reads 3 % faster.

    Args:
        y_ptr: [rows, columns], bfloat16 or float16, overwritten.
        low_ptr: l [rows, rank], in the dtype of y.
        factor_ptr: F [rank, columns], in the dtype of y.
        base_ptr: [rows, columns], in the dtype of y; read if BASE.
        total_ptr: [rows, columns], in the dtype of y; if TOTAL, the base is added here and not to y.
        stride_..._row, _column, _rank: elements from one to the next along that dimension.
        UNSEEN: bits of float32 that the dtype of y does not have, as a mask.
        TERMS: how many times RANKS ranks there are.
        ROWS, COLUMNS: of a tile of y.
        RANKS: how much of the rank is multiplied at a time.
        INTERPRETED: whether Triton's interpreter runs the kernel.
    """
    down, right = (tl.program_id(1), tl.program_id(0)) if BASE else (tl.program_id(0), tl.program_id(1))
    row = (down.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (right * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < rows) & (column < columns)
    at = y_ptr + row * stride_y_row + column * stride_y_column
    exact = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if BASE:
        base = tl.load(base_ptr + row * stride_base_row + column * stride_base_column, mask=inside, other=0.0)
    addend = tl.zeros((ROWS, COLUMNS), tl.float32)
    for part in tl.static_range(TERMS):
        r = part * RANKS + tl.arange(0, RANKS)
        left = low_ptr + row * stride_low_row + r[None, :] * stride_low_rank
        right = factor_ptr + r[:, None] * stride_factor_rank + column * stride_factor_column
        left = tl.load(left, mask=(row < rows) & (r[None, :] < rank), other=0.0)
        right = tl.load(right, mask=(r[:, None] < rank) & (column < columns), other=0.0)
        if INTERPRETED:
            left, right = left.to(tl.float32), right.to(tl.float32)
        addend = tl.dot(left, right, addend)
    if TOTAL:
        own = rounded_at_random(exact, addend, UNSEEN).to(y_ptr.dtype.element_ty)
        tl.store(at, own, mask=inside)
        at = total_ptr + row * stride_total_row + column * stride_total_column
        exact, addend = tl.zeros((ROWS, COLUMNS), tl.float32), own.to(tl.float32)
    if BASE:
        addend += exact
        exact = base.to(tl.float32)
    tl.store(at, rounded_at_random(exact, addend, UNSEEN).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rounded_at_random(exact, addend, UNSEEN: tl.constexpr):
    """Return exact + addend without the bits UNSEEN, rounded up or down as a hash of both says."""
    total = exact + addend
    h = addend.to(tl.int32, bitcast=True) * FIRST + exact.to(tl.int32, bitcast=True) * SECOND
    bits = (total.to(tl.int32, bitcast=True) + (h >> 16 & UNSEEN)) & (-1 - UNSEEN)
    return tl.where(total == total, bits.to(tl.float32, bitcast=True), total)
