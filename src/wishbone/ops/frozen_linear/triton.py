"""FP8 weights on their way to a matrix product, in Triton: transposed byte for byte, or dequantized from blocks.

The transpose moves each byte once in and once out: for 14,336 x 4,096 that is 117 MB, 0.03 ms of an H200's memory
traffic where the product with 8,192 tokens takes 0.7 ms. Hardware moves words, not bytes. So a program reads words of 4
neighbouring columns from 4 neighbouring rows, turns each such square of 4 x 4 bytes in registers, and writes words of 4
neighbouring rows; threads exchange only whole words.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wishbone.ops.launch_sizes import tiles

ROWS, COLUMNS = 128, 128
"""Bytes of a tile that one program turns."""
SCALE_BLOCK = 128
"""Rows and columns of a weight that share a scale."""


def transpose_bytes(matrix: Tensor, out: Tensor) -> Tensor:
    """Write the transpose of `matrix` [N, K] to `out` [K, N], both contiguous, of 1-byte elements; return `out`.

    Raises:
        ValueError: if N or K is not a multiple of 4.
    """
    rows, columns = matrix.shape
    if rows % 4 or columns % 4:
        raise ValueError(f"a matrix of {rows} x {columns} bytes does not consist of squares of 4 x 4")
    grid = (tiles(columns, COLUMNS), tiles(rows, ROWS))
    transpose[grid](
        matrix.view(torch.int32), out.view(torch.int32), rows // 4, columns // 4, ROWS // 4, COLUMNS // 4, num_warps=4
    )
    return out


def dequantize_blocks(values: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    """Write values * scale to `out`; return `out`.

    Args:
        values: [N, K] float8_e4m3fn, contiguous.
        scale: [ceil(N / 128), ceil(K / 128)], float32, contiguous.
        out: [N, K], contiguous.
    """
    rows, columns = values.shape
    grid = (tiles(columns, SCALE_BLOCK), tiles(rows, SCALE_BLOCK))
    dequantize[grid](values, scale, out, rows, columns, scale.shape[1], SCALE_BLOCK, num_warps=8)
    return out


@triton.jit
def transpose(words_ptr, out_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Transpose one tile of ROWS x COLUMNS squares of 4 x 4 bytes; grid (columns / COLUMNS, rows / ROWS).

    Args:
        words_ptr: int32 [4 rows, columns], contiguous: the matrix [4 rows, 4 columns] of bytes.
        out_ptr: int32 [4 columns, rows], contiguous: its transpose [4 columns, 4 rows] of bytes.
        rows, columns: of squares.
    """
    down = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    right = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (down < rows)[:, None] & (right < columns)[None, :]
    source = words_ptr + (4 * down * columns)[:, None] + right[None, :]
    a = tl.load(source, mask=inside, other=0)
    b = tl.load(source + columns, mask=inside, other=0)
    c = tl.load(source + 2 * columns, mask=inside, other=0)
    d = tl.load(source + 3 * columns, mask=inside, other=0)
    target = out_ptr + (4 * right * rows)[:, None] + down[None, :]
    turned = tl.trans(inside)
    for byte in tl.static_range(4):
        shift = 8 * byte
        word = (
            ((a >> shift) & 0xFF)
            | (((b >> shift) & 0xFF) << 8)
            | (((c >> shift) & 0xFF) << 16)
            | (((d >> shift) & 0xFF) << 24)
        )
        tl.store(target + byte * rows, tl.trans(word), mask=turned)


@triton.jit
def dequantize(values_ptr, scale_ptr, out_ptr, rows, columns, stride_scale_row, BLOCK: tl.constexpr):
    """Write values * scale for one block of BLOCK x BLOCK; grid (columns / BLOCK, rows / BLOCK).

    Args:
        values_ptr: [rows, columns] e4m3, contiguous.
        scale_ptr: float32, one scale for each block, its columns side by side.
        out_ptr: [rows, columns], contiguous, float32 or 16 bits.
        stride_scale_row: elements from one row of scales to the next.
    """
    down = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    right = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (down < rows)[:, None] & (right < columns)[None, :]
    at = (down * columns)[:, None] + right[None, :]
    factor = tl.load(scale_ptr + tl.program_id(1).to(tl.int64) * stride_scale_row + tl.program_id(0))
    exact = tl.load(values_ptr + at, mask=inside, other=0.0).to(tl.float32) * factor
    tl.store(out_ptr + at, exact.to(out_ptr.dtype.element_ty), mask=inside)
