"""The parts of `grouped.py` that PyTorch has no grouped call for, in Triton; `kernels.py` has the kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from wishbone.ops.expert_mlp.kernels import (
    add_by_expert,
    clamped,
    dots,
    gather,
    outer,
    rotated_rows,
    scaled_rows,
    weighted_gate,
)
from wishbone.ops.expert_mlp.routing import Routing
from wishbone.ops.fp8_quantize.rotation import hadamard
from wishbone.ops.launch_sizes import power_of_two, tiles
from wishbone.ops.low_rank_add.reference import unseen_bits

ROWS, COLUMNS, RANKS, BLOCK, WARPS = 64, 128, 64, 1024, 4
"""A tile of y, ranks that are multiplied at a time, columns of one row that are."""
SCALED_ROWS, SCALED_COLUMNS = 16, 512
"""A tile of `dequantize_rows`."""
ROTATED_ROWS = 128
"""Rows of a tile of `dequantize_rotated_rows`."""
OUTER_ROWS = 64
"""Rows of an expert that `outer_by_expert` adds up at a time."""


def add_by_expert_(
    y: Tensor, bias: Tensor | None, low: Tensor | None, factors: Tensor | None, routing: Routing
) -> Tensor:
    """Add b^e, rounded to the nearest, and then l_s F^e, rounded at random, to each row of y, in place; return y.

    Args:
        y: [S, N], bfloat16 or float16.
        bias: [experts, N] or None.
        low: [S, r] or None.
        factors: [experts, r, N]; read with `low`.
        routing: of the rows.
    """
    (rows, columns), experts = y.shape, routing.ends.shape[0]
    low = y if low is None or factors is None else low
    own = y if factors is None else factors
    rank = 0 if factors is None else factors.shape[1]
    strides = (0, 0, 0) if factors is None else factors.stride()
    if rows:
        add_by_expert[(tiles(rows, ROWS) + experts, tiles(columns, COLUMNS))](
            y,
            y if bias is None else bias,
            low,
            own,
            routing.ends,
            experts,
            y.stride(0),
            0 if bias is None else bias.stride(0),
            low.stride(0),
            *strides,
            columns,
            rank,
            BIAS=bias is not None,
            UNSEEN=unseen_bits(y.dtype),
            EXPERTS=power_of_two(experts),
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            RANKS=min(RANKS, max(16, power_of_two(max(1, rank)))),
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=WARPS,
        )
    return y


def outer_by_expert(left: Tensor, right: Tensor, routing: Routing) -> Tensor:
    """Return the sum over each expert's rows of left_s right_s^T, [experts, N, K] float32; N or K is a small rank."""
    n, k, experts = left.shape[1], right.shape[1], routing.ends.shape[0]
    out = torch.empty(experts, n, k, device=left.device, dtype=torch.float32)
    tile_n, tile_k = (min(128, max(16, power_of_two(size))) for size in (n, k))
    if tile_n == tile_k == 128:
        tile_n = 64
    outer[(experts, tiles(n, tile_n), tiles(k, tile_k))](
        left,
        right,
        out,
        routing.ends,
        left.stride(0),
        right.stride(0),
        n,
        k,
        ROWS=OUTER_ROWS,
        TILE_N=tile_n,
        TILE_K=tile_k,
        INTERPRETED=triton.knobs.runtime.interpret,
        num_warps=WARPS,
    )
    return out


def gathered_by_token(rows: Tensor, routing: Routing, share: Tensor | None = None) -> Tensor:
    """Return the sum over each token's choices of share times its row, [T, K]; rows [S, K], share [T, k]."""
    tokens, k = routing.row.shape
    columns = rows.shape[1]
    out = rows.new_empty(tokens, columns)
    share = None if share is None else share.contiguous()
    if tokens:
        gather[(tokens, tiles(columns, BLOCK))](
            rows,
            routing.row,
            routing.row if share is None else share,
            out,
            rows.stride(0),
            columns,
            k,
            SHARE=share is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return out


def dots_of_rows(left: Tensor, right: Tensor) -> Tensor:
    """Return left_s . right_s [S] float32; both [S, I]."""
    rows, columns = left.shape
    out = torch.empty(rows, device=left.device, dtype=torch.float32)
    if rows:
        dots[(rows,)](
            left,
            right,
            out,
            left.stride(0),
            right.stride(0),
            columns,
            BLOCK=min(BLOCK, power_of_two(columns)),
            num_warps=WARPS,
        )
    return out


def weighted_gate_backward_(
    unweighted: Tensor, u: Tensor, share: Tensor, routing: Routing, *, silu: bool, keep: bool
) -> Tensor:
    """Overwrite u [S, 2 I] with its gradient, and with `keep` `unweighted` [S, I] with h; return the dots [S] float32.

    Args:
        unweighted: W^T do, contiguous.
        u: g and v side by side.
        share: [T, k].
        routing: of the rows.
        silu: whether the activation is SiLU, otherwise GELU.
        keep: whether h is wanted.
    """
    rows, columns = unweighted.shape
    out = torch.empty(rows, device=u.device, dtype=torch.float32)
    assert unweighted.is_contiguous() and u.stride(1) == 1
    if rows:
        weighted_gate[(rows,)](
            unweighted,
            u,
            share.contiguous(),
            routing.choice,
            out,
            u.stride(0),
            columns,
            SILU=silu,
            KEEP=keep,
            BLOCK=min(BLOCK, power_of_two(columns)),
            num_warps=WARPS,
        )
    return out


def clamped_gate(u: Tensor, slope: float, limit: float) -> Tensor:
    """Return h [S, I] of u [S, 2 I]; `ClampedGate` says what it is."""
    h = u.new_empty(u.shape[0], u.shape[1] // 2)
    _launch_clamped(u, h, slope, limit, backward=False)
    return h


def clamped_gate_backward_(h_gradient: Tensor, u: Tensor, slope: float, limit: float) -> tuple[Tensor, Tensor]:
    """Overwrite dh with h and u with du, and return both."""
    assert h_gradient.is_contiguous()
    _launch_clamped(u, h_gradient, slope, limit, backward=True)
    return h_gradient, u


def _launch_clamped(u: Tensor, h: Tensor, slope: float, limit: float, *, backward: bool) -> None:
    rows, columns = h.shape
    if rows:
        clamped[(rows, tiles(columns, BLOCK))](
            u, h, u.stride(0), columns, slope, limit, BACKWARD=backward, BLOCK=BLOCK, num_warps=WARPS
        )


def dequantize_rows(codes: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    """Write codes * scale to `out`; return `out`.

    Args:
        codes: [..., columns] float8_e4m3fn or int8, contiguous.
        scale: a scale for each row, float32, contiguous.
        out: as the codes, float32 or 16 bits.
    """
    rows, columns = scale.numel(), codes.shape[-1]
    scaled_rows[(tiles(rows, SCALED_ROWS), tiles(columns, SCALED_COLUMNS))](
        codes, scale, out, rows, columns, ROWS=SCALED_ROWS, COLUMNS=SCALED_COLUMNS, num_warps=8
    )
    return out


def dequantize_rotated_rows(codes: Tensor, scale: Tensor, out: Tensor, block: int) -> Tensor:
    """Write scale * (codes H), with H in blocks of `block` columns, to `out`; return `out`.

    Args:
        codes: [..., columns] int8, contiguous.
        scale: a scale for each row, float32, contiguous.
        out: as the codes, float32 or 16 bits.
        block: a power of two from 16 on that divides columns; 0 for none.
    """
    if not block:
        return dequantize_rows(codes, scale, out)
    rows, columns = scale.numel(), codes.shape[-1]
    rotated_rows[(tiles(rows, ROTATED_ROWS), columns // block)](
        codes,
        scale,
        hadamard(block, torch.float16, codes.device),
        out,
        rows,
        columns,
        TURN=block,
        ROWS=ROTATED_ROWS,
        INTERPRETED=triton.knobs.runtime.interpret,
        num_warps=8,
    )
    return out
