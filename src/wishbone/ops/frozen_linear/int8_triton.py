r"""Products of int8 matrices on tensor cores, in Triton: with scales, bias and the result's rotation.

    y_tn = s_t r_n sum_k a_tk b_nk + bias_n

Sums are exact, in int32. Where the result is rotated, a tile holds whole blocks of columns: its sums are brought into
the range of float16 by a power of 2, which keeps 11 bits of each, and multiplied by H on tensor cores. cuBLAS has
neither scales a row nor a bias for int8.

Triton does not reach Turing's int8 tensor cores. There cuBLAS writes the sums, and `finish` does the rest in one more
pass, which takes a T4 about a quarter of the time of the product of 4,096 x 4,096 (an estimate from its bandwidth).
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from wishbone.ops.fp8_quantize import QuantizedRows
from wishbone.ops.fp8_quantize.rotation import hadamard
from wishbone.ops.frozen_linear import int8_hopper
from wishbone.ops.frozen_linear.tile import Tile
from wishbone.ops.launch_sizes import tiles
from wishbone.ops.low_rank_add import add_low_rank_

GROUP = 8
"""Tiles below each other that run side by side, so that they read the same columns of b from the cache."""
LARGEST_HALF = 65504.0
FINISHED_ROWS, FINISHED_COLUMNS = 32, 128


TILES = (Tile(128, 256, 128, 8, 3), Tile(128, 128, 64, 4, 4), Tile(64, 128, 64, 4, 3))
"""From large to small: for Ampere, for Ada and consumer cards, for Turing. Hopper has `int8_hopper.py`."""
FEW_ROWS = Tile(64, 128, 128, 4, 4)


def int8_product(
    rows: QuantizedRows,
    b: Tensor,
    b_scale: Tensor | None,
    bias: Tensor | None,
    *,
    turn: int,
    term: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return rows (b_scale * b)^T, rotated in blocks of `turn` columns and divided by sqrt(turn), plus bias and term.

    Args:
        rows: [T, K], int8.
        b: [N, K], int8, contiguous.
        b_scale: [N], float32, or None for 1.
        bias: [N] or None.
        turn: a power of two that divides N; 0 for no rotation.
        term: l [T, r] and F [r, N], whose product is added; None for none.

    Returns:
        [T, N] in the dtype that `rows` had.
    """
    a, (count, depth) = rows.values, rows.values.shape
    columns = b.shape[0]
    y = torch.empty(count, columns, dtype=rows.dtype, device=a.device)
    if not count:
        return y
    shrink = math.ceil(math.log2(max(1.0, depth * 127.0**2 / LARGEST_HALF)))
    half = torch.float32 if triton.knobs.runtime.interpret else torch.float16
    ending = (
        rows.scale,
        b if b_scale is None else b_scale,
        b if bias is None else bias,
        hadamard(turn, half, a.device) if turn else a,
        y,
        count,
        columns,
        2.0**-shrink,
        2.0**shrink / max(turn, 1) ** 0.5,
    )
    kinds = {"SCALED": b_scale is not None, "BIAS": bias is not None, "TURN": turn}
    if not has_tensor_cores(a.device):
        finish[(tiles(count, FINISHED_ROWS), tiles(columns, FINISHED_COLUMNS))](
            sums(a, b), *ending, **kinds, ROWS=FINISHED_ROWS, COLUMNS=FINISHED_COLUMNS, num_warps=4
        )
        return y if term is None else add_low_rank_(y, *term)
    if int8_hopper.runs_on(a.device) and count >= int8_hopper.LEAST_ROWS and y.element_size() == 2:
        within = term is None or int8_hopper.takes(term, turn)
        int8_hopper.persistent_product(a, b, ending, kinds, term if within else None)
        return y if within or term is None else add_low_rank_(y, *term)
    tile = tile_for(count, shared_bytes(a.device))
    product[(tiles(count, tile.rows) * tiles(columns, tile.columns),)](
        a,
        b,
        depth,
        *ending,
        **kinds,
        EVEN=depth % tile.depth == 0,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        GROUP=GROUP,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y if term is None else add_low_rank_(y, *term)


def sums(a: Tensor, b: Tensor) -> Tensor:
    """Return a b^T in int32 by cuBLAS, [T, N] or with up to 16 rows more: it takes no fewer than 17."""
    few = 17 - a.shape[0]
    return torch._int_mm(torch.nn.functional.pad(a, (0, 0, 0, few)) if few > 0 else a, b.t())


@functools.cache
def has_tensor_cores(device: torch.device) -> bool:
    """Return whether Triton multiplies int8 on tensor cores of a device: from compute capability 8.0 on."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def tile_for(rows: int, shared: int) -> Tile:
    """Return how to cut a product of so many rows, for a GPU with so much shared memory a program, in bytes."""
    fitting = [tile for tile in TILES if tile.shared_bytes <= shared]
    return fitting[0] if rows > FEW_ROWS.rows or FEW_ROWS.shared_bytes > shared else FEW_ROWS


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Return the shared memory that a program can have on a device."""
    if device.type != "cuda":
        return 1 << 30
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)  # type: ignore[attr-defined]


@triton.jit
def product(
    a_ptr,
    b_ptr,
    depth,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    signs_ptr,
    y_ptr,
    rows,
    columns,
    shrink,
    widen,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    TURN: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write a tile of y; grid (rows / ROWS * columns / COLUMNS,).

    Args:
        a_ptr: [rows, depth] int8, contiguous.
        b_ptr: [columns, depth] int8, contiguous.
        EVEN: whether DEPTH divides depth.
        ROWS, COLUMNS, DEPTH: of a tile, and how much of the sum a step takes.
        GROUP: tiles below each other that run side by side.
        Others as `_write`.
    """
    program = tl.program_id(0)
    down, right = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    first = program // (GROUP * right) * GROUP
    height = tl.minimum(down - first, GROUP)
    within = program % (GROUP * right)
    row = (first + within % height) * ROWS + tl.arange(0, ROWS)
    column = within // height * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    a_at = a_ptr + (row % rows).to(tl.int64)[:, None] * depth + k[None, :]
    b_at = b_ptr + (column % columns).to(tl.int64)[None, :] * depth + k[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(0, depth, DEPTH):
        if EVEN:
            a = tl.load(a_at)
            b = tl.load(b_at)
        else:
            a = tl.load(a_at, mask=(start + k < depth)[None, :], other=0)
            b = tl.load(b_at, mask=(start + k < depth)[:, None], other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
        a_at += DEPTH
        b_at += DEPTH
    _write(
        total, row, column, a_scale_ptr, b_scale_ptr, bias_ptr, signs_ptr, y_ptr, rows, columns, shrink, widen,
        SCALED, BIAS, TURN, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit
def finish(
    sums_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    signs_ptr,
    y_ptr,
    rows,
    columns,
    shrink,
    widen,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    TURN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write a tile of y from its sums; grid (rows / ROWS, columns / COLUMNS).

    Args:
        sums_ptr: [rows or more, columns], int32, contiguous.
        Others as `_write`.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    total = tl.load(sums_ptr + row.to(tl.int64)[:, None] * columns + column[None, :], mask=inside, other=0)
    _write(
        total, row, column, a_scale_ptr, b_scale_ptr, bias_ptr, signs_ptr, y_ptr, rows, columns, shrink, widen,
        SCALED, BIAS, TURN, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit
def _write(
    total,
    row,
    column,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    signs_ptr,
    y_ptr,
    rows,
    columns,
    shrink,
    widen,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    TURN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Scale the sums of a tile, rotate them, add a bias, and write them.

    Args:
        total: [ROWS, COLUMNS] int32.
        row, column: of the tile.
        a_scale_ptr: [rows] float32.
        b_scale_ptr: [columns] float32; read if SCALED.
        bias_ptr: [columns]; read if BIAS.
        signs_ptr: H [TURN, TURN], float16; read if TURN is not 0.
        y_ptr: [rows, columns], contiguous.
        shrink, widen: factors on the sums before and after the rotation; read if TURN is not 0.
        TURN: columns that are rotated together, at most COLUMNS; 0 for none.
    """
    exact = total.to(tl.float32)
    scale = tl.load(a_scale_ptr + row, mask=row < rows, other=0.0)
    if TURN > 0:
        at = tl.arange(0, TURN)
        signs = tl.load(signs_ptr + at[:, None] * TURN + at[None, :])
        blocks = tl.reshape((exact * shrink).to(signs.dtype), (ROWS * COLUMNS // TURN, TURN))
        exact = tl.reshape(tl.dot(blocks, signs), (ROWS, COLUMNS))
        scale = scale * widen
    exact = exact * scale[:, None]
    if SCALED:
        exact = exact * tl.load(b_scale_ptr + column, mask=column < columns, other=0.0)[None, :]
    if BIAS:
        exact = exact + tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    y_at = y_ptr + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(y_at, exact.to(y_ptr.dtype.element_ty), mask=inside)
