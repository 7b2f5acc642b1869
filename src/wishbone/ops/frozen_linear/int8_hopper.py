r"""The product of `int8_triton.py` for Hopper: a program or two for each processor, computing tile after tile.

    y_tn = s_t r_n sum_k a_tk b_nk + bias_n + sum_j l_tj F_jn

Hardware copies tiles of a, b and y (TMA), and while the end of one tile is computed, the factors of the next are under
way. So the rotation and the term of an adapter, l F, are nearly free. Triton waits for the tensor cores after each step
of a sum that is not float32; two programs share a processor, so that these have work meanwhile. An H200 multiplies
8,192 x 28,672 x 4,096 at 1,500 TOP/s, with both ends at 1,230, where `int8_triton.py` reaches 1,110 and 1,006 and FP8
1,570 (docs/log.md). The sum is rounded once, with the term in it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from wishbone.ops.frozen_linear.tile import Tile
from wishbone.ops.launch_sizes import tiles

TILE = Tile(128, 128, 128, 4, 3)
"""A tile of y, how much of the sum a step takes, and how a program runs it, as measured on an H200 (docs/log.md)."""
PROGRAMS = 2
"""Programs of a processor: while one waits for its sums, which Triton does after each step, the other multiplies."""
GROUP = 16
"""Tiles below each other that run side by side, so that they read the same rows of b from the cache."""
ROTATED_TILE, ROTATED_PROGRAMS, ROTATED_GROUP = Tile(128, 256, 128, 8, 3), 1, 8
"""The same for a product that is rotated or has a term: what these need does not fit into half the shared memory."""
RANKS = 16
"""Ranks that are multiplied at a time."""
MOST_RANKS, WHOLE_TURN = 48, 128
"""What fits into shared memory: ranks of a term, and the block of a rotation that it may come with."""
LEAST_ROWS = 65


def persistent_product(
    a: Tensor, b: Tensor, ending: Sequence[Any], kinds: dict[str, Any], term: tuple[Tensor, Tensor] | None
) -> None:
    """Write the product to y.

    Args:
        a: [T, K] int8, contiguous.
        b: [N, K] int8, contiguous; K and N are multiples of 16.
        ending: a_scale, b_scale, bias, signs, y, T, N, shrink, widen, as `int8_triton.py` passes them on; y is
            contiguous, of 16 bits.
        kinds: which of these are read.
        term: l [T, r] and F [r, N] in the dtype of y, for which `takes` is true; or None.
    """
    a_scale, b_scale, bias, signs, y, rows, columns, shrink, widen = ending
    low, factor = (y, y) if term is None else (term[0], term[1])
    rank = 0 if term is None else low.shape[1]
    tile, programs, group = TILE, PROGRAMS, GROUP
    if term is not None or kinds["TURN"]:
        tile, programs, group = ROTATED_TILE, ROTATED_PROGRAMS, ROTATED_GROUP
    count = tiles(rows, tile.rows) * tiles(columns, tile.columns)
    product_of_tiles[(min(count, programs * processors(a.device)),)](
        TensorDescriptor.from_tensor(a, [tile.rows, tile.depth]),
        TensorDescriptor.from_tensor(b, [tile.columns, tile.depth]),
        TensorDescriptor.from_tensor(y, [tile.rows, tile.columns // 2]),
        a.shape[1],
        a_scale,
        b_scale,
        bias,
        signs,
        low,
        factor,
        *low.stride(),
        *factor.stride(),
        rows,
        columns,
        rank,
        shrink,
        widen,
        **kinds,
        TERMS=tiles(rank, RANKS),
        RANKS=RANKS,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        GROUP=group,
        INTERPRETED=triton.knobs.runtime.interpret,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def takes(term: tuple[Tensor, Tensor], turn: int) -> bool:
    """Return whether a product that is rotated in blocks of `turn` columns has room for a term."""
    return term[0].shape[1] <= MOST_RANKS and turn in (0, WHOLE_TURN)


@functools.cache
def processors(device: torch.device) -> int:
    """Return how many programs a device runs at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


@functools.cache
def runs_on(device: torch.device) -> bool:
    """Return whether a device has what this needs."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


@triton.jit
def product_of_tiles(
    a_tiles,
    b_tiles,
    y_tiles,
    depth,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    signs_ptr,
    low_ptr,
    factor_ptr,
    stride_low_row,
    stride_low_rank,
    stride_factor_rank,
    stride_factor_column,
    rows,
    columns,
    rank,
    shrink,
    widen,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    TURN: tl.constexpr,
    TERMS: tl.constexpr,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write every tile of y whose number is that of this program and more by the number of programs; any grid.

    Args:
        a_tiles, b_tiles: tiles [ROWS, DEPTH] of a and [COLUMNS, DEPTH] of b, int8.
        y_tiles: tiles [ROWS, COLUMNS / 2] of y.
        low_ptr, factor_ptr: l [rows, rank] and F [rank, columns], in the dtype of y; read if TERMS is not 0.
        stride_..._row, _column, _rank: elements from one to the next along that dimension.
        TERMS: how many times RANKS ranks there are.
        GROUP: tiles below each other that run side by side.
        Others as `int8_triton._write`; TURN is at most COLUMNS / 2.
    """
    down, right = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    at = tl.arange(0, max(TURN, 1))
    signs = tl.load(signs_ptr + at[:, None] * TURN + at[None, :])
    for tile in tl.range(tl.program_id(0), down * right, tl.num_programs(0), flatten=True):
        first = tile // (GROUP * right) * GROUP
        height = tl.minimum(down - first, GROUP)
        within = tile % (GROUP * right)
        top, left = (first + within % height) * ROWS, within // height * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.int32)
        for step in range(tl.cdiv(depth, DEPTH)):
            a = a_tiles.load([top, step * DEPTH])
            b = b_tiles.load([left, step * DEPTH])
            total = tl.dot(a, b.T, total, out_dtype=tl.int32)
        halves = tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
        one, other = tl.split(halves)
        _end(
            one, y_tiles, top, left, a_scale_ptr, b_scale_ptr, bias_ptr, signs, low_ptr, factor_ptr,
            stride_low_row, stride_low_rank, stride_factor_rank, stride_factor_column, rows, columns, rank, shrink,
            widen, SCALED, BIAS, TURN, TERMS, RANKS, ROWS, COLUMNS // 2, INTERPRETED,
        )  # fmt: skip
        _end(
            other, y_tiles, top, left + COLUMNS // 2, a_scale_ptr, b_scale_ptr, bias_ptr, signs, low_ptr,
            factor_ptr, stride_low_row, stride_low_rank, stride_factor_rank, stride_factor_column, rows, columns,
            rank, shrink, widen, SCALED, BIAS, TURN, TERMS, RANKS, ROWS, COLUMNS // 2, INTERPRETED,
        )  # fmt: skip


@triton.jit
def _end(
    total,
    y_tiles,
    top,
    left,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    signs,
    low_ptr,
    factor_ptr,
    stride_low_row,
    stride_low_rank,
    stride_factor_rank,
    stride_factor_column,
    rows,
    columns,
    rank,
    shrink,
    widen,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    TURN: tl.constexpr,
    TERMS: tl.constexpr,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write a tile [ROWS, COLUMNS] of y from its sums; arguments as above, top and left of the tile, signs as read."""
    row, column = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
    exact = total.to(tl.float32)
    scale = tl.load(a_scale_ptr + row, mask=row < rows, other=0.0)
    if TURN > 0:
        blocks = tl.reshape((exact * shrink).to(signs.dtype), (ROWS * COLUMNS // TURN, TURN))
        exact = tl.reshape(tl.dot(blocks, signs), (ROWS, COLUMNS))
        scale = scale * widen
    exact = exact * scale[:, None]
    if SCALED:
        exact = exact * tl.load(b_scale_ptr + column, mask=column < columns, other=0.0)[None, :]
    if BIAS:
        exact = exact + tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    for part in tl.static_range(TERMS):
        r = part * RANKS + tl.arange(0, RANKS)
        low = tl.load(
            low_ptr + row.to(tl.int64)[:, None] * stride_low_row + r[None, :] * stride_low_rank,
            mask=(row < rows)[:, None] & (r < rank)[None, :],
            other=0.0,
        )
        factor = tl.load(
            factor_ptr + r[:, None] * stride_factor_rank + column.to(tl.int64)[None, :] * stride_factor_column,
            mask=(r < rank)[:, None] & (column < columns)[None, :],
            other=0.0,
        )
        if INTERPRETED:
            low, factor = low.to(tl.float32), factor.to(tl.float32)
        exact = tl.dot(low, factor, exact)
    y_tiles.store([top, left], exact.to(y_tiles.dtype))
