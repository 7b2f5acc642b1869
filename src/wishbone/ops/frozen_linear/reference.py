r"""A frozen linear layer, defined through the numbers W that its weight stands for: y = e(x) W^T, dx = e(g s) (W / s).

e rounds rows to e4m3 for weights that want their input so, and is the identity for all others. The derivative of a
rounding is taken as the identity. Computed in float32, or in float64 where x is.
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


class _RoundedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dense: Tensor, row_scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(dense, row_scale)
        return _rounded(x, row_scale is not None) @ dense.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dense, row_scale = ctx.saved_tensors
        if row_scale is None:
            return grads[0] @ dense, None, None
        scale = row_scale.to(dense.dtype)
        return _rounded(grads[0] * scale, True) @ (dense / scale[:, None]), None, None


def _rounded(rows: Tensor, rounds: bool) -> Tensor:
    if not rounds:
        return rows
    return quantize_rows_reference(rows.flatten(0, -2)).dequantized().view_as(rows)
