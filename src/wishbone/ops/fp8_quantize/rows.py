"""Rows in 8 bits: their two forms, e4m3 and rotated int8, the type that all functions of this op return, its limits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from wishbone.ops.fp8_quantize.rotation import rotation_block

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
INT8_MAX = 127.0
SMALLEST_AMAX = 2.0**-100
"""Rows whose largest element is below this are scaled as if it were this, so that no scale is 0 and none overflows."""


class RowForm(NamedTuple):
    """How rows are brought to 8 bits.

    Attributes:
        dtype: float8_e4m3fn or int8.
        block: columns that are rotated together first (`rotation.py`); 0 for none.
    """

    dtype: torch.dtype
    block: int = 0

    @property
    def largest(self) -> float:
        """The value that a row's largest element becomes."""
        return E4M3_MAX if self.dtype == E4M3 else INT8_MAX

    @property
    def scale_divisor(self) -> float:
        """What a row's largest element, rotated, is divided by to give its scale."""
        return self.largest * math.sqrt(max(self.block, 1))


E4M3_ROWS = RowForm(E4M3)
INT8_ROWS = RowForm(torch.int8)


def rotated_int8(columns: int) -> RowForm:
    """Return the form of int8 rows of this size that are rotated first."""
    return RowForm(torch.int8, rotation_block(columns))


class QuantizedRows(NamedTuple):
    """A matrix in 8 bits, with one scale for each row: x ~ scale * values, or for rotated rows x H / sqrt(block).

    Attributes:
        values: [rows, columns], float8_e4m3fn or int8, contiguous.
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

    The difference is formed in float32 before it is rounded to 8 bits.
    """

    reference: QuantizedRows
    difference: QuantizedRows
