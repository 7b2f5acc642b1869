r"""Frozen weights of experts in rotated int8: `QuantizedStack` with codes that every GPU and processor can read.

    W_er = s_er q_er H,      H the rotation of `fp8_quantize/rotation.py` along a row, s with both 1 / sqrt(B) in it

The rotation leaves a row no outliers, so codes are closer to W than those of e4m3, at the same size. Codes are turned
into 16 bits as all stacks are: rows of codes times H on tensor cores, exact in float32, times one scale.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from wishbone.ops.expert_mlp.quantized import QuantizedStack
from wishbone.ops.fp8_quantize import INT8_ROWS, RowForm, quantize_rows, rotated_int8
from wishbone.ops.fp8_quantize.rotation import rotated
from wishbone.ops.frozen_linear.scratch import scratch

SMALLEST_BLOCK = 16
"""Columns that tensor cores multiply at least; rows that have no larger block are not rotated."""


class Int8Stack(QuantizedStack):
    """W = scale q H, one scale a row.

    Attributes:
        codes: q [experts, rows, columns], int8 from -127 to 127, contiguous.
        scale: [experts, rows, 1], float32.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("codes", "scale")
    codes: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Int8Stack:
        """Return a weight [experts, rows, columns] in rotated int8, quantized expert by expert."""
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(*weight.shape[:2], 1, dtype=torch.float32, device=weight.device)
        form = form_of_rows(weight.shape[-1])
        for expert, matrix in enumerate(weight.detach()):
            rows = quantize_rows(matrix.contiguous(), form=form)
            codes[expert], scale[expert] = rows.values, rows.scale / max(form.block, 1) ** 0.5
        return cls(weight.shape, weight.dtype, {"codes": codes, "scale": scale})

    def matrices(self, dtype: torch.dtype) -> Tensor:
        """Return W in `dtype`, on CUDA in scratch memory."""
        if not self.codes.is_cuda or dtype == torch.float64:
            return _turned(self.codes, self.scale, dtype)
        from wishbone.ops.expert_mlp.triton import dequantize_rotated_rows

        out = scratch(tuple(self.shape), dtype, self.codes.device)
        return dequantize_rotated_rows(self.codes, self.scale, out, form_of_rows(self.shape[-1]).block)

    def dense(self) -> Tensor:
        """Return W in the dtype that it is seen in."""
        return _turned(self.codes, self.scale, self.dtype)

    def of_expert(self, expert: int) -> Tensor:
        """Return W of one expert."""
        return _turned(self.codes[expert], self.scale[expert], self.dtype)


def form_of_rows(columns: int) -> RowForm:
    """Return how rows of this size are brought to int8."""
    form = rotated_int8(columns)
    return form if form.block >= SMALLEST_BLOCK else INT8_ROWS


def _turned(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return scale * (q H); sums of so few codes are exact in float32."""
    precise = torch.promote_types(dtype, torch.float32)
    block = form_of_rows(codes.shape[-1]).block
    exact = rotated(codes.to(precise), block) if block else codes.to(precise)
    return (exact * scale.to(precise)).to(dtype)
