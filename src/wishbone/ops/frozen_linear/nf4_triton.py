"""Weights in NF4 turned into 16 bits in one kernel, scales of scales included (QLoRA, arXiv 2305.14314, section 3).

A byte holds two neighbouring codes, the first in its upper half. With c the 16 values of NF4, B elements a block and,
where scales are quantized themselves, m the 256 values of their code and 256 scales a block,

    W_n = c[code_n] s_{n / B},        s_j = m[q_j] t_{j / 256} + mean

bitsandbytes takes three kernels for it. Sums and products are rounded one by one, as there, so the results are the same
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

TILE = 4096
"""Elements that a program turns, in whole blocks."""
SCALES_A_BLOCK = tl.constexpr(256)
"""Scales that share a scale of their own."""


def dequantize_nf4(codes: Tensor, state: Any, out: Tensor) -> Tensor:
    """Write the elements that NF4 codes stand for to `out`; return `out`.

    Args:
        codes: uint8, contiguous, two codes a byte.
        state: bitsandbytes' `QuantState` of them, in blocks of at most 4,096 elements, a power of two.
        out: as many elements as there are codes, contiguous, in float32 or 16 bits.
    """
    absmax, scales = state.absmax, state.state2 if state.nested else None
    dequantize[(tiles(out.numel(), TILE),)](
        codes,
        out,
        _nf4_values(codes.device),
        absmax,
        absmax if scales is None else scales.code,
        absmax if scales is None else scales.absmax,
        absmax if scales is None else state.offset,
        out.numel(),
        codes.numel(),
        NESTED=scales is not None,
        BLOCKS=TILE // state.blocksize,
        HALF=state.blocksize // 2,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out


@lru_cache
def _nf4_values(device: torch.device) -> Tensor:
    """Return the 16 values of NF4, float32."""
    from bitsandbytes.functional import get_4bit_type

    with torch.inference_mode(False):
        values: Tensor = get_4bit_type("nf4", device=device)
    return values


@triton.jit
def dequantize(
    codes_ptr,
    out_ptr,
    nf4_values_ptr,
    scale_ptr,
    scale_values_ptr,
    scale_scale_ptr,
    mean_ptr,
    elements,
    codes_bytes,
    NESTED: tl.constexpr,
    BLOCKS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Write BLOCKS blocks of a weight; grid (elements / TILE,).

    Args:
        codes_ptr: [codes_bytes] uint8, two codes a byte, the first in its upper half.
        out_ptr: [elements], float32 or 16 bits.
        nf4_values_ptr: c [16] float32.
        scale_ptr: a scale for each block: s, float32; if NESTED, its code q, uint8.
        scale_values_ptr, scale_scale_ptr, mean_ptr: m [256], t and mean [1], float32, read if NESTED.
        HALF: bytes of a block.
    """
    block = (tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS))[:, None]
    byte = block * HALF + tl.arange(0, HALF)[None, :]
    exists = block * (2 * HALF) < elements
    scale = tl.load(scale_ptr + block, mask=exists, other=0)
    if NESTED:
        coarse = tl.load(scale_scale_ptr + block // SCALES_A_BLOCK, mask=exists, other=0.0)
        fine = tl.load(scale_values_ptr + scale.to(tl.int32), mask=exists, other=0.0)
        scale = fine * coarse + tl.load(mean_ptr)
    pair = tl.load(codes_ptr + byte, mask=byte < codes_bytes, other=0).to(tl.int32)
    first = tl.load(nf4_values_ptr + (pair >> 4)) * scale
    second = tl.load(nf4_values_ptr + (pair & 15)) * scale
    at = block * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
    tl.store(out_ptr + at, tl.interleave(first, second).to(out_ptr.dtype.element_ty), mask=at < elements)
