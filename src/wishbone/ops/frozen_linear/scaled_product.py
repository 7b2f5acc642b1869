"""a b^T of two FP8 matrices whose rows have scales, on the tensor cores of a CUDA device.

    y_tn = s_t r_n sum_k a_tk b_nk        e4m3 times e4m3, summed in float32, out in bfloat16

PyTorch has this as `torch.nn.functional.scaled_mm` from 2.10 on; 2.9 has the same kernel under a private name.
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

    Raises:
        RuntimeError: in a PyTorch without this product.
    """
    if not a.shape[0]:
        return torch.zeros(0, b.shape[0], dtype=torch.bfloat16, device=a.device)
    if hasattr(F, "scaled_mm"):
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
    if not torch.__version__.startswith("2.9."):
        raise RuntimeError(f"PyTorch {torch.__version__} has no torch.nn.functional.scaled_mm; use 2.10 or newer")
    private: Tensor = torch._scaled_mm(
        a,
        b.t(),
        scale_a=a_scale,
        scale_b=b_scale,
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=FAST_ACCUMULATION,
    )
    return private
