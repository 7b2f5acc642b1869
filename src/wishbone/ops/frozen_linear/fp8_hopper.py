r"""The product of e4m3 matrices for Hopper with what an adapter adds in its end, and what the product is added to.

    y_tn = base_tn + s_t r_n sum_k a_tk b_nk + sum_j l_tj F_jn

A matrix product of a library writes its result, and `low_rank_add` reads it, reads the base, and writes the sum. Here
the result is added where it is computed: it is never written without the term. Programs compute tile after tile, two on
each processor, so that one multiplies while the other ends a tile; hardware copies the tiles (TMA).

With a base the sum is rounded at random (`low_rank_add/reference.py`), as what is added is small beside it. Without one
nothing has been rounded before, and the sum is rounded to the nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from wishbone.ops.fp8_quantize import QuantizedRows
from wishbone.ops.frozen_linear.int8_hopper import processors, runs_on
from wishbone.ops.frozen_linear.tile import Tile
from wishbone.ops.launch_sizes import power_of_two, tiles
from wishbone.ops.low_rank_add.reference import unseen_bits
from wishbone.ops.low_rank_add.triton import rounded_at_random

TILE, PROGRAMS, GROUP = Tile(128, 128, 128, 4, 3), 2, 16
"""A tile of y, how much of the sum a step takes and how a program runs it; programs of a processor; tiles below each
other that run side by side."""
MOST_LAYERS, MOST_RANKS, LEAST_ROWS = 3, 64, 65
"""Layers that lie side by side in y and ranks of each that fit into the end of a tile; fewest rows."""
LONGEST_SUM, LONGEST_SUM_WITH_BASE = 0, 0
"""Longest sums K of products that are faster so than by the library and one more pass; 0 for none."""


def takes(rows: QuantizedRows, sizes: Sequence[int], rank: int, *, with_base: bool) -> bool:
    """Return whether a product is faster here than by the library and one more pass for what is added.

    Args:
        rows: its first factor.
        sizes: columns of the layers whose adapters are added.
        rank: of each of them.
        with_base: whether a base is added as well.
    """
    longest = LONGEST_SUM_WITH_BASE if with_base else LONGEST_SUM
    count, depth = rows.values.shape
    even = all(size % TILE.columns == 0 for size in sizes[:-1])
    small = rank <= MOST_RANKS and len(sizes) <= MOST_LAYERS and rows.dtype.itemsize == 2
    return depth <= longest and count >= LEAST_ROWS and even and small and runs_on(rows.values.device)


def product_with_term(
    rows: QuantizedRows,
    b: Tensor,
    b_scale: Tensor | None,
    term: tuple[Tensor, Tensor] | None,
    base: Tensor | None = None,
    *,
    sizes: Sequence[int] = (),
    tile: Tile = TILE,
    programs: int = PROGRAMS,
    group: int = GROUP,
) -> Tensor:
    """Return rows (b_scale * b)^T, plus what adapters of layers side by side add, plus a base.

    Args:
        rows: [T, K], float8_e4m3fn; the product is in their dtype, bfloat16 or float16.
        b: [N, K], float8_e4m3fn, contiguous; K and N are multiples of 16.
        b_scale: [N], float32, or None for 1.
        term: l [T, r] of the first layer and F^T [N, r] in the dtype of y, or None; l of the
            next layer lies r columns further.
        base: [T, N] in the dtype of y, rows contiguous, or None.
        sizes: columns of each layer in y, all but the last multiples of `tile.columns`; () for one layer.
        tile, programs, group: how the product is cut.

    Returns:
        [T, N], contiguous.

    Raises:
        ValueError: layers of a term are more or wider than the end of a tile takes.
    """
    a, columns = rows.values, b.shape[0]
    if base is not None and (base.stride(1) != 1 or base.stride(0) % 8 or base.data_ptr() % 16):
        base = base.contiguous()  # as hardware copies it
    y = torch.empty(a.shape[0], columns, dtype=rows.dtype, device=a.device)
    if not y.numel():
        return y
    low, factor = (y, y) if term is None else term
    rank = 0 if term is None else factor.shape[1]
    borders = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    if len(sizes) > MOST_LAYERS or rank > MOST_RANKS or any(border % tile.columns for border in borders):
        raise ValueError(f"layers of {tuple(sizes)} columns with rank {rank} do not fit into the end of a product")
    first, second = (*borders, columns, columns)[:2]
    count = tiles(a.shape[0], tile.rows) * tiles(columns, tile.columns)
    part = [tile.rows, tile.columns // 2]
    product_of_tiles[(min(count, programs * processors(a.device)),)](
        TensorDescriptor.from_tensor(a, [tile.rows, tile.depth]),
        TensorDescriptor.from_tensor(b, [tile.columns, tile.depth]),
        TensorDescriptor.from_tensor(y, part),
        TensorDescriptor.from_tensor(y if base is None else base, part),
        a.shape[1],
        rows.scale,
        rows.scale if b_scale is None else b_scale,
        low,
        factor,
        *low.stride(),
        *factor.stride(),
        *y.shape,
        rank,
        first,
        second,
        SCALED=b_scale is not None,
        TERM=term is not None,
        BASE=base is not None,
        UNSEEN=unseen_bits(y.dtype),
        RANKS=max(16, power_of_two(max(rank, 1))),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        GROUP=group,
        INTERPRETED=triton.knobs.runtime.interpret,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y


@triton.jit
def product_of_tiles(
    a_tiles,
    b_tiles,
    y_tiles,
    base_tiles,
    depth,
    a_scale_ptr,
    b_scale_ptr,
    low_ptr,
    factor_ptr,
    stride_low_row,
    stride_low_rank,
    stride_factor_column,
    stride_factor_rank,
    rows,
    columns,
    rank,
    first_border,
    second_border,
    SCALED: tl.constexpr,
    TERM: tl.constexpr,
    BASE: tl.constexpr,
    UNSEEN: tl.constexpr,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write every tile of y whose number is that of this program and more by the number of programs; any grid.

    Args:
        a_tiles, b_tiles: tiles [ROWS, DEPTH] of a and [COLUMNS, DEPTH] of b, e4m3.
        y_tiles, base_tiles: tiles [ROWS, COLUMNS / 2] of y and of the base.
        a_scale_ptr, b_scale_ptr: [rows] and [columns] float32.
        SCALED: whether b_scale_ptr is read.
        low_ptr, factor_ptr: l [rows, layers * rank] and F^T [columns, rank], in the dtype of y; read if TERM.
        stride_..._row, _column, _rank: elements from one to the next along that dimension.
        first_border, second_border: columns at which the second and the third layer begin, `columns` where there is
            none.
        BASE: whether there is one.
        UNSEEN: bits of float32 that the dtype of y does not have, as a mask.
        RANKS: power of two, at least rank.
        GROUP: tiles below each other that run side by side.
        INTERPRETED: whether Triton's interpreter runs the kernel.
    """
    down, right = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), down * right, tl.num_programs(0), flatten=True):
        first = tile // (GROUP * right) * GROUP
        height = tl.minimum(down - first, GROUP)
        within = tile % (GROUP * right)
        top, left = (first + within % height) * ROWS, within // height * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(tl.cdiv(depth, DEPTH)):
            a = a_tiles.load([top, step * DEPTH])
            b = b_tiles.load([left, step * DEPTH])
            total = tl.dot(a, b.T, total)
        layer = (left >= first_border).to(tl.int32) + (left >= second_border).to(tl.int32)
        halves = tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
        one, other = tl.split(halves)
        low_at = low_ptr + layer * rank * stride_low_rank
        _end(
            one, y_tiles, base_tiles, top, left, a_scale_ptr, b_scale_ptr, low_at, factor_ptr, stride_low_row,
            stride_low_rank, stride_factor_column, stride_factor_rank, rows, columns, rank, SCALED, TERM, BASE, UNSEEN,
            RANKS, ROWS, COLUMNS // 2, INTERPRETED,
        )  # fmt: skip
        _end(
            other, y_tiles, base_tiles, top, left + COLUMNS // 2, a_scale_ptr, b_scale_ptr, low_at, factor_ptr,
            stride_low_row, stride_low_rank, stride_factor_column, stride_factor_rank, rows, columns, rank, SCALED,
            TERM, BASE, UNSEEN, RANKS, ROWS, COLUMNS // 2, INTERPRETED,
        )  # fmt: skip


@triton.jit
def _end(
    exact,
    y_tiles,
    base_tiles,
    top,
    left,
    a_scale_ptr,
    b_scale_ptr,
    low_ptr,
    factor_ptr,
    stride_low_row,
    stride_low_rank,
    stride_factor_column,
    stride_factor_rank,
    rows,
    columns,
    rank,
    SCALED: tl.constexpr,
    TERM: tl.constexpr,
    BASE: tl.constexpr,
    UNSEEN: tl.constexpr,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Write a tile [ROWS, COLUMNS] of y from its sums; arguments as above, top and left of the tile, l of its layer."""
    row, column = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
    exact = exact * tl.load(a_scale_ptr + row, mask=row < rows, other=0.0)[:, None]
    if SCALED:
        exact = exact * tl.load(b_scale_ptr + column, mask=column < columns, other=0.0)[None, :]
    if TERM:
        r = tl.arange(0, RANKS)
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
    if BASE:
        exact = rounded_at_random(base_tiles.load([top, left]).to(tl.float32), exact, UNSEEN)
    y_tiles.store([top, left], exact.to(y_tiles.dtype))
