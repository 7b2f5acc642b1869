r"""A frozen linear layer, defined by the values W that its weight stands for: y = e(x) W^T, dx = e(g s) (W / s).

e rounds rows to 8 bits for weights that take their input so, and is the identity for all others; int8 rows are rotated
before and back after (`fp8_quantize/rotation.py`). The derivative of rounding is taken as the identity. Computed in
float32, or in float64 where x is.

What NF4 codes stand for, with c the 16 values of NF4, B elements a block, and m the 256 values of quantized scales, of
which 256 share a scale of their own (QLoRA, arXiv 2305.14314, section 3):

    W_n = c[code_n] s_{n / B},        s_j = m[q_j] t_{j / 256} + mean
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wishbone.ops.fp8_quantize import RowForm, rotated_back
from wishbone.ops.fp8_quantize.reference import quantize_rows_reference
from wishbone.ops.frozen_linear.eight_bit import EightBitWeight
from wishbone.ops.frozen_linear.weight import FrozenWeight


def frozen_linear_reference(x: Tensor, weight: FrozenWeight, bias: Tensor | None = None) -> Tensor:
    """Return e(x) W^T + bias, [..., N], differentiable in x [..., K] and bias [N]; arguments as `frozen_linear`."""
    precise = torch.promote_types(x.dtype, torch.float32)
    y: Tensor = _Product.apply(x.to(precise), weight)
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


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight) -> Tensor:
        ctx.weight = weight
        if isinstance(weight, EightBitWeight):
            return _rounded(x, weight.input_form) @ (_codes(weight, x.dtype) * weight.scale.to(x.dtype)[:, None]).t()
        return x @ weight.dense().to(x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), weight = grads, ctx.weight
        if isinstance(weight, EightBitWeight):
            return _rounded(g, weight.gradient_form, weight.scale) @ _codes(weight, g.dtype), None
        return g @ weight.dense().to(g.dtype), None


def _codes(weight: EightBitWeight, dtype: torch.dtype) -> Tensor:
    """What the codes of a weight stand for without their scales: `dense` would round the product of both to float32."""
    codes, block = weight.qweight.to(dtype), weight.input_form.block
    return rotated_back(codes, block) if block else codes


def _rounded(rows: Tensor, form: RowForm, column_scale: Tensor | None = None) -> Tensor:
    quantized = quantize_rows_reference(rows.flatten(0, -2), column_scale, form=form).dequantized().view_as(rows)
    return rotated_back(quantized, form.block) if form.block else quantized
