"""y += l F for a low-rank product l F that is small beside the rounding of y: rounded so that it is not lost."""

from __future__ import annotations

from torch import Tensor

from wishbone.ops.backend import Backend, runs_triton
from wishbone.ops.low_rank_add.reference import ROUNDED_AT_RANDOM, add_low_rank_reference_

__all__ = ["add_low_rank_"]


def add_low_rank_(
    y: Tensor,
    low: Tensor,
    factor: Tensor,
    *,
    base: Tensor | None = None,
    total: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Add low @ factor to y in place, and return y; with a base, y becomes base + (y + low @ factor).

    With a `total` beside the base, y becomes y + low @ factor, and the total base + y.

    Args:
        y: [T, N]. In bfloat16 and float16 the sum is rounded at random (`reference`), but repeatably; in other dtypes
            to the nearest.
        low: [T, r], in the dtype of y.
        factor: [r, N], in the dtype of y, any strides.
        base: [T, N], in the dtype of y, or None: what y is small beside. Then y and the product are one addend to it.
        backend: "triton" or "reference" by name, or "auto": triton for 16 bits on CUDA, reference elsewhere.

    Raises:
        ValueError: the backend is unknown, or it is "triton" and y is not of 16 bits.
    """
    rounds = y.dtype in ROUNDED_AT_RANDOM
    if runs_triton(backend, auto=y.is_cuda and rounds):
        if not rounds:
            raise ValueError(f"the Triton kernel rounds to 16 bits; y is {y.dtype}, which backend 'reference' takes")
        from wishbone.ops.low_rank_add.triton import add_low_rank_triton_

        return add_low_rank_triton_(y, low, factor, base, total)
    return add_low_rank_reference_(y, low, factor, base, total)
