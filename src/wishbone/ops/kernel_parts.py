"""What the Triton kernels share: constants, and how a program finds the row that it computes."""

from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))
"""A GPU raises 2 to a power in one instruction: e^x = 2^(x log2 e)."""
LN2 = tl.constexpr(math.log(2))


@triton.jit
def whole_row(columns, BLOCK: tl.constexpr):
    """Return what a program of one whole row works on, for a grid of (rows,) and rows of at most BLOCK columns.

    Returns:
        The row (int64, so that offsets into large matrices do not overflow), its columns [BLOCK], and which of these
        exist [BLOCK].
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    return row, column, column < columns


@triton.jit
def part_of_row(columns, BLOCK: tl.constexpr):
    """Return what a program of BLOCK columns of one row works on, as `whole_row`, for a grid of (rows, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return row, column, column < columns


@triton.jit
def load_row(ptr, row, stride_row, column, inside):
    """Return the elements of one row at `column`, in float32, 0 where not `inside`; columns lie side by side."""
    return tl.load(ptr + row * stride_row + column, mask=inside, other=0.0).to(tl.float32)
