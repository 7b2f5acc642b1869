"""Rows in FP8: the type that all forms of this op return, and its limits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
SMALLEST_AMAX = 2.0**-100
"""Rows whose largest element is below this are scaled as if it were this, so that no scale is 0 and none overflows."""


class QuantizedRows(NamedTuple):
    """A matrix in e4m3, with one scale for each row: x ~ scale * values.

    Attributes:
        values: [rows, columns], float8_e4m3fn, contiguous.
        scale: [rows, 1], float32.
        dtype: of the matrix that was quantized, and of products with it.
    """

    values: Tensor
    scale: Tensor
    dtype: torch.dtype

    def dequantized(self) -> Tensor:
        """Return scale * values, [rows, columns], in float32, or in float64 if the matrix was float64."""
        precise = torch.promote_types(self.dtype, torch.float32)
        return self.values.to(precise) * self.scale.to(precise)


class LockstepRows(NamedTuple):
    """The same rows of policy and reference: the reference's, and what the policy's differ from them by.

    The difference is formed in float32 before it is rounded to e4m3.
    """

    reference: QuantizedRows
    difference: QuantizedRows
