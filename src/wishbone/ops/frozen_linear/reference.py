r"""A frozen linear layer, defined by the values W that its weight stands for: y = e(x) W^T, dx = e(g s) (W / s).

e rounds rows to e4m3 for weights that take their input in e4m3, and is the identity for all others. The derivative of
rounding is taken as the identity. Computed in float32, or in float64 where x is.

What NF4 codes stand for, with c the 16 values of NF4, B elements a block, and m the 256 values of quantized scales, of
which 256 share a scale of their own (QLoRA, arXiv 2305.14314, section 3):

    W_n = c[code_n] s_{n / B},        s_j = m[q_j] t_{j / 256} + mean
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wishbone.ops.fp8_quantize.reference import quantize_rows_reference


def frozen_linear_reference(
    x: Tensor, dense: Tensor, bias: Tensor | None = None, row_scale: Tensor | None = None
) -> Tensor:
    """Return e(x) W^T + bias, differentiable in x and bias.

    Args:
        x: [..., K].
        dense: W, [N, K].
        bias: [N] or None.
        row_scale: [N], the scales of W's rows where input and gradient are rounded to e4m3; None rounds nothing.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    y: Tensor = _RoundedProduct.apply(x.to(precise), dense.to(precise), row_scale)
    return (y if bias is None else y + bias).to(x.dtype)


def nf4_reference(codes: Tensor, state: Any) -> Tensor:
    """Return the elements that NF4 codes stand for, in the shape and dtype that they were quantized from.

    Args:
        codes: uint8, two codes a byte, the first in its upper half.
        state: bitsandbytes' `QuantState` of them.
    """
    elements = state.shape.numel()
    pairs = codes.flatten().int()
    code = torch.stack([pairs >> 4, pairs & 15], dim=1).flatten()[:elements]
    scale = state.absmax
    if state.nested:
        coarse = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: scale.numel()]
        scale = state.state2.code[scale.int()] * coarse + state.offset
    exact: Tensor = state.code[code] * scale.repeat_interleave(state.blocksize)[:elements]
    return exact.to(state.dtype).view(state.shape)


class _RoundedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dense: Tensor, row_scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(dense, row_scale)
        return (x if row_scale is None else _rounded(x)) @ dense.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dense, row_scale = ctx.saved_tensors
        if row_scale is None:
            return grads[0] @ dense, None, None
        return _rounded(grads[0], row_scale) @ (dense / row_scale.to(dense.dtype)[:, None]), None, None


def _rounded(rows: Tensor, column_scale: Tensor | None = None) -> Tensor:
    return quantize_rows_reference(rows.flatten(0, -2), column_scale).dequantized().view_as(rows)
