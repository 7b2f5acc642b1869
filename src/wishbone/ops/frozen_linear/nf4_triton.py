"""Weights in NF4 turned into 16 bits in one kernel, scales of scales included (QLoRA, arXiv 2305.14314, section 3).

A byte holds two neighbouring codes, the first in its upper half. With c the 16 numbers of NF4, B numbers a block and,
where scales are quantized themselves, m the 256 numbers of their code and 256 scales a block,

    W_n = c[code_n] s_{n / B},        s_j = m[q_j] t_{j / 256} + mean

bitsandbytes takes three kernels for it. Sums and products are rounded one by one, as there, so the numbers are the same
bit by bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wishbone.ops.launch_sizes import tiles

NUMBERS = 4096
"""Numbers of a tile, in whole blocks."""


def dequantize_nf4(codes: Tensor, state: Any, out: Tensor) -> Tensor:
    """Write what NF4 codes stand for to `out`; return `out`.

    Args:
        codes: uint8, contiguous, two codes a byte.
        state: bitsandbytes' `QuantState` of them, in blocks of at most 4,096 numbers, a power of two.
        out: as many numbers as there are codes, contiguous, in float32 or 16 bits.
    """
    absmax, scales = state.absmax, state.state2 if state.nested else None
    table = _nf4_table(codes.device)
    blocks = NUMBERS // state.blocksize
    _dequantize_kernel[(tiles(out.numel(), NUMBERS),)](
        codes,
        out,
        table,
        absmax,
        absmax if scales is None else scales.code,
        absmax if scales is None else scales.absmax,
        absmax if scales is None else state.offset,
        out.numel(),
        codes.numel(),
        NESTED=scales is not None,
        BLOCKS=blocks,
        HALF=state.blocksize // 2,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out


@lru_cache
def _nf4_table(device: torch.device) -> Tensor:
    """The 16 numbers of NF4, float32."""
    from bitsandbytes.functional import get_4bit_type

    with torch.inference_mode(False):
        table: Tensor = get_4bit_type("nf4", device=device)
    return table


@triton.jit
def _dequantize_kernel(
    codes,
    out,
    table,
    absmax,
    scale_code,
    scale_absmax,
    mean,
    numbers,
    pairs,
    NESTED: tl.constexpr,
    BLOCKS: tl.constexpr,
    HALF: tl.constexpr,
):
    block = (tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS))[:, None]
    byte = block * HALF + tl.arange(0, HALF)[None, :]
    exists = block * (2 * HALF) < numbers
    scale = tl.load(absmax + block, mask=exists, other=0)
    if NESTED:
        coarse = tl.load(scale_absmax + block // 256, mask=exists, other=0.0)
        scale = tl.load(scale_code + scale.to(tl.int32), mask=exists, other=0.0) * coarse + tl.load(mean)
    pair = tl.load(codes + byte, mask=byte < pairs, other=0).to(tl.int32)
    first = tl.load(table + (pair >> 4)) * scale
    second = tl.load(table + (pair & 15)) * scale
    at = block * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
    tl.store(out + at, tl.interleave(first, second).to(out.dtype.element_ty), mask=at < numbers)
