"""a b^T of two FP8 matrices whose rows have scales, on the tensor cores of a CUDA device.

y_tn = s_t r_n sum_k a_tk b_nk        e4m3 times e4m3, summed in float32, out in bfloat16
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MULTIPLE = 16
"""Rows and columns of weights are multiples of this: the hardware reads 16 bytes at a time."""
FAST_ACCUMULATION = True
"""Partial sums stay in the tensor core, with fewer bits than float32; their error is far below that of e4m3."""


def scaled_product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return (a_scale * a) (b_scale * b)^T + bias, [T, N] in bfloat16.

    Args:
        a: [T, K], float8_e4m3fn, contiguous; a_scale: [T, 1], float32.
        b: [N, K], float8_e4m3fn, contiguous; b_scale: [1, N], float32.
        bias: [N], bfloat16, or None.
    """
    if not a.shape[0]:
        return torch.zeros(0, b.shape[0], dtype=torch.bfloat16, device=a.device)
    product: Tensor = F.scaled_mm(
        a,
        b.t(),
        a_scale,
        F.ScalingType.RowWise,
        b_scale,
        F.ScalingType.RowWise,
        bias=bias,
        output_dtype=torch.bfloat16,
        use_fast_accum=FAST_ACCUMULATION,
    )
    return product
