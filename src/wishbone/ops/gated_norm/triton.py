"""The gated norm in Triton: one pass forward, one backward; it keeps its inputs alone.

With n the normed row, d = dy w (times a where the norm comes first), the gradient of what is normed is
(d - n mean(d n)) / rms; and a' = s (1 + z (1 - s)) with s = sigmoid(z).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wishbone.ops.gated_norm.reference import GatedNorm
from wishbone.ops.launch_sizes import power_of_two, tiles

ELEMENTS = 4096
"""About how many one program works on."""


def gated_norm_triton(x: Tensor, gate: Tensor, weight: Tensor, norm: GatedNorm) -> Tensor:
    """Return the gated norm of the last dimension; arguments as `gated_norm`."""
    out: Tensor = _GatedNorm.apply(x, gate, weight, norm)
    return out


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, norm: GatedNorm) -> Tensor:
        ctx.save_for_backward(x, gate, weight)
        ctx.norm = norm
        rows, gates = _rows(x, norm), _rows(gate, norm)
        out = torch.empty_like(rows)
        _launch(rows, gates, weight, norm, rows, out, out, backward=False)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        x, gate, weight = ctx.saved_tensors
        rows, gates, d_rows = (_rows(one, ctx.norm) for one in (x, gate, d_out))
        d_x, d_gate = torch.empty_like(rows), torch.empty_like(gates)
        _launch(rows, gates, weight, ctx.norm, d_rows, d_x, d_gate, backward=True)
        return d_x.view(x.shape), d_gate.view(gate.shape), None, None


def _rows(x: Tensor, norm: GatedNorm) -> Tensor:
    return x.contiguous().view(-1, norm.group)


def _launch(
    rows: Tensor,
    gates: Tensor,
    weight: Tensor,
    norm: GatedNorm,
    d_out: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    backward: bool,
) -> None:
    block = power_of_two(norm.group)
    size = max(1, ELEMENTS // block)
    if len(rows):
        norm_rows[(tiles(len(rows), size),)](
            rows, gates, weight, d_out, first, second, len(rows), weight.numel() // norm.group, norm.eps,
            WIDTH=norm.group, GATE_FIRST=norm.gate_first, BACKWARD=backward, ROWS=size, BLOCK=block,
        )  # fmt: skip


@triton.jit
def norm_rows(
    x_ptr,
    gate_ptr,
    weight_ptr,
    d_out_ptr,
    first_ptr,
    second_ptr,
    rows,
    groups,
    eps,
    WIDTH: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute outputs into first, or, if BACKWARD, the gradients of x and gate into first and second.

    Args:
        x_ptr, gate_ptr, d_out_ptr: [rows, WIDTH]; row r is group r % groups of its token.
        weight_ptr: [groups * WIDTH].
        first_ptr, second_ptr: [rows, WIDTH], written.
        ROWS: of a program; the grid is (rows / ROWS,).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    there = (row < rows)[:, None] & (column < WIDTH)[None, :]
    at = row[:, None] * WIDTH + column[None, :]
    x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    z = tl.load(gate_ptr + at, mask=there, other=0.0).to(tl.float32)
    w = tl.load(weight_ptr + (row % groups)[:, None] * WIDTH + column[None, :], mask=there, other=0.0).to(tl.float32)
    s = tl.sigmoid(z)
    a = z * s
    h = x
    if GATE_FIRST:
        h = x * a
    inverse = tl.rsqrt(tl.sum(h * h, 1) / WIDTH + eps)[:, None]
    n = h * inverse
    if BACKWARD:
        d = tl.load(d_out_ptr + at, mask=there, other=0.0).to(tl.float32) * w
        slope = s * (1.0 + z * (1.0 - s))
        if GATE_FIRST:
            d_h = inverse * (d - n * (tl.sum(d * n, 1) / WIDTH)[:, None])
            d_x = d_h * a
            d_z = d_h * x * slope
        else:
            d_z = d * n * slope
            d = d * a
            d_x = inverse * (d - n * (tl.sum(d * n, 1) / WIDTH)[:, None])
        tl.store(first_ptr + at, d_x.to(first_ptr.dtype.element_ty), mask=there)
        tl.store(second_ptr + at, d_z.to(second_ptr.dtype.element_ty), mask=there)
    else:
        y = n * w
        if not GATE_FIRST:
            y = y * a
        tl.store(first_ptr + at, y.to(first_ptr.dtype.element_ty), mask=there)
