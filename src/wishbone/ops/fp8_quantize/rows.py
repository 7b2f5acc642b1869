"""Rows in FP8: what the forms of this op share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
SMALLEST_AMAX = 2.0**-100
"""Rows whose largest value is below this are scaled as if it were this, so that no scale is 0 and none overflows."""


class QuantizedRows(NamedTuple):
    """A matrix as e4m3 numbers, with one scale a row: x ~ scale * values.

    Attributes:
        values: [rows, columns], float8_e4m3fn, contiguous.
        scale: [rows, 1], float32.
        dtype: of the matrix that was quantized, and of products with it.
    """

    values: Tensor
    scale: Tensor
    dtype: torch.dtype

    def dequantized(self) -> Tensor:
        """Return scale * values, [rows, columns], in float32, or float64 where that was quantized."""
        precise = torch.promote_types(self.dtype, torch.float32)
        return self.values.to(precise) * self.scale.to(precise)
