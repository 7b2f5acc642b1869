"""Kernels that are hard to compile ahead."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def told_by_name(x_ptr, KIND: tl.constexpr):
    tl.store(x_ptr, 1.0 if KIND == "fp32" else 2.0)


@triton.jit
def impossible(x_ptr):
    tl.static_assert(False, "not this one")


@triton.jit
def of_size(x_ptr, SIZE: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, SIZE), tl.zeros((SIZE,), tl.float32))
