"""The elementwise part of a gated MLP in Triton: one pass over memory forward, one backward.

The equations are in `elementwise.py`. Forward reads gate and up and writes the product: 6 bytes an element in 16 bits.
Backward reads the product's gradient, gate and up and writes the product, which the adapter of `down` needs again, and
both gradients over what it read: 12 bytes an element, and no new tensor. Arithmetic is float32.

What adapters add is added on the way, where it would take a pass of its own over each tensor (`ops/low_rank_add`):
products of rank r in registers, of tiles of rows. Without adapters a program has a part of one row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wishbone.ops.gated_mlp.elementwise import GELU_CUBIC, GELU_SLOPE, Activation, Low, Lows
from wishbone.ops.low_rank_add.triton import low_rank_tile, ranks_of

BLOCK = 1024
WARPS = 4
ROWS, COLUMNS = 32, 128
FORWARD_WARPS, BACKWARD_WARPS = 4, 8
"""Tiles of kernels that add low-rank products."""
SLOPE = tl.constexpr(GELU_SLOPE)
CUBIC = tl.constexpr(GELU_CUBIC)


def gated_product(gate: Tensor, up: Tensor, activation: Activation, lows: Lows = (None, None)) -> Tensor:
    """Return a(gate) * up [T, I], contiguous; rows of gate and up [T, I] may be apart by more than I."""
    product = torch.empty_like(gate, memory_format=torch.contiguous_format)
    if any(low is not None for low in lows):
        _launch_tiles(_forward_low, FORWARD_WARPS, product, gate, up, activation, lows)
    else:
        _launch(_forward, product, gate, up, activation)
    return product


def gated_backward_(
    product_gradient: Tensor, gate: Tensor, up: Tensor, activation: Activation, lows: Lows = (None, None, None)
) -> None:
    """Overwrite dp with the product, gate with its gradient and up with its gradient; shapes [T, I]."""
    if any(low is not None for low in lows):
        _launch_tiles(_backward_low, BACKWARD_WARPS, product_gradient, gate, up, activation, lows)
    else:
        _launch(_backward, product_gradient, gate, up, activation)


def _launch(kernel: Any, product: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> None:
    rows, columns = product.shape
    assert product.stride(1) == gate.stride(1) == up.stride(1) == 1
    if rows == 0:
        return
    kernel[(rows, triton.cdiv(columns, BLOCK))](
        product,
        gate,
        up,
        product.stride(0),
        gate.stride(0),
        up.stride(0),
        columns,
        SILU=activation == "silu",
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def _launch_tiles(
    kernel: Any, warps: int, product: Tensor, gate: Tensor, up: Tensor, activation: Activation, lows: Lows
) -> None:
    rows, columns = product.shape
    assert product.stride(1) == gate.stride(1) == up.stride(1) == 1
    if rows == 0:
        return
    products, ranks = zip(*(_product(low, gate) for low in lows), strict=True)
    kernel[(triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))](
        product,
        gate,
        up,
        product.stride(0),
        gate.stride(0),
        up.stride(0),
        products,
        rows,
        columns,
        *ranks,
        SILU=activation == "silu",
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        INTERPRETED=triton.knobs.runtime.interpret,
        num_warps=warps,
    )


def _product(low: Low | None, instead: Tensor) -> tuple[tuple[Tensor | int, ...], int]:
    """What `low_rank_tile` takes, and ranks at a time; 0 where there is no term, and nothing of it is read."""
    if low is None:
        return (instead, instead, 0, 0, 0, 0, 0), 0
    left, right = low
    return (left, right, *left.stride(), *right.stride(), left.shape[1]), ranks_of(left.shape[1])


@triton.jit
def _share(g, SILU: tl.constexpr):
    """a(g) / g, a sigmoid."""
    return tl.sigmoid(g if SILU else (g + g * g * g * CUBIC) * (2 * SLOPE))


@triton.jit
def _slope(g, share, SILU: tl.constexpr):
    """a'(g)."""
    slope = share * (1 + g * (1 - share))
    if not SILU:
        slope = share + g * share * (1 - share) * (2 * SLOPE) * (1 + g * g * (3 * CUBIC))
    return slope


@triton.jit
def _forward(
    product_ptr, gate_ptr, up_ptr, product_step, gate_step, up_step, columns, SILU: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    g = tl.load(gate_ptr + row * gate_step + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up_ptr + row * up_step + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(product_ptr + row * product_step + column, g * _share(g, SILU) * u, mask=inside)


@triton.jit
def _backward(
    product_ptr, gate_ptr, up_ptr, product_step, gate_step, up_step, columns, SILU: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    dp = tl.load(product_ptr + row * product_step + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate_ptr + row * gate_step + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up_ptr + row * up_step + column, mask=inside, other=0.0).to(tl.float32)
    share = _share(g, SILU)
    value = g * share
    tl.store(product_ptr + row * product_step + column, value * u, mask=inside)
    tl.store(gate_ptr + row * gate_step + column, dp * u * _slope(g, share, SILU), mask=inside)
    tl.store(up_ptr + row * up_step + column, dp * value, mask=inside)


@triton.jit
def _with_low(
    tensor,
    step,
    low,
    row,
    column,
    rows,
    columns,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A tile of a tensor in float32, and what an adapter adds to it; nothing where RANKS is 0."""
    inside = (row < rows) & (column < columns)
    exact = tl.load(tensor + row * step + column, mask=inside, other=0.0).to(tl.float32)
    if RANKS > 0:
        exact += low_rank_tile(low, row, column, rows, columns, ROWS, COLUMNS, RANKS, INTERPRETED)
    return exact


@triton.jit
def _forward_low(
    product_ptr,
    gate_ptr,
    up_ptr,
    product_step,
    gate_step,
    up_step,
    lows,
    rows,
    columns,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """`_forward` of a tile, with what adapters add; GATE and UP are ranks at a time."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    g = _with_low(gate_ptr, gate_step, lows[0], row, column, rows, columns, GATE, ROWS, COLUMNS, INTERPRETED)
    u = _with_low(up_ptr, up_step, lows[1], row, column, rows, columns, UP, ROWS, COLUMNS, INTERPRETED)
    inside = (row < rows) & (column < columns)
    tl.store(product_ptr + row * product_step + column, g * _share(g, SILU) * u, mask=inside)


@triton.jit
def _backward_low(
    product_ptr,
    gate_ptr,
    up_ptr,
    product_step,
    gate_step,
    up_step,
    lows,
    rows,
    columns,
    PRODUCT: tl.constexpr,
    GATE: tl.constexpr,
    UP: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """`_backward` of a tile, with what adapters add; PRODUCT, GATE and UP are ranks at a time."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    dp = _with_low(product_ptr, product_step, lows[0], row, column, rows, columns, PRODUCT, ROWS, COLUMNS, INTERPRETED)
    g = _with_low(gate_ptr, gate_step, lows[1], row, column, rows, columns, GATE, ROWS, COLUMNS, INTERPRETED)
    u = _with_low(up_ptr, up_step, lows[2], row, column, rows, columns, UP, ROWS, COLUMNS, INTERPRETED)
    share = _share(g, SILU)
    value = g * share
    inside = (row < rows) & (column < columns)
    tl.store(product_ptr + row * product_step + column, value * u, mask=inside)
    tl.store(gate_ptr + row * gate_step + column, dp * u * _slope(g, share, SILU), mask=inside)
    tl.store(up_ptr + row * up_step + column, dp * value, mask=inside)
