"""Products of low precision: in which dtype they are taken, and how a small addend to them is not lost.

What an adapter adds is mostly smaller than half a step of bfloat16. Added to an output that was rounded already, and
rounded to the nearest, it is lost. On CPUs, where a matrix product that is added to a tensor is rounded once, with the
sum, product and bias are added to what the adapter adds. cuBLAS rounds a product before it adds (an H200 keeps 14 to
58 % of the adapter), and FP8 products do not add at all: there `low_rank_add` rounds so that sums are right on average.
The same holds for the gradient of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from wishbone.ops.frozen_linear import EightBitWeight, FrozenWeight, MatrixWeight, Prepared
from wishbone.ops.low_rank_add import add_low_rank_

LowTerm = tuple[slice, Tensor, Tensor]
"""Columns of an output, and the factors l [T, r] and F [r, columns] of what is added to them."""


def product_and_terms(
    weight: FrozenWeight, prepared: Prepared, bias: Tensor | None, terms: Sequence[LowTerm]
) -> Tensor:
    """Return x W^T + b and the terms of adapters, [T, N]."""
    if terms and isinstance(prepared, Tensor) and _rounds_once(prepared):
        assert isinstance(weight, MatrixWeight)
        y = prepared.new_zeros(prepared.shape[0], weight.out_features)
        for columns, low, factor in terms:
            torch.mm(low, factor, out=y[:, columns])
        y.addmm_(prepared, weight.matrix(prepared.dtype).t())
        return y if bias is None else y.add_(bias)
    y = weight.forward(prepared, bias)
    for columns, low, factor in terms:
        add_low_rank_(y[:, columns], low, factor)
    return y


def gradient_and_term(
    grads: Sequence[Tensor], weights: Sequence[FrozenWeight], term: tuple[Tensor, Tensor] | None, dtype: torch.dtype
) -> Tensor:
    """Return sum_i g_i W_i [T, K], and h S added to it.

    Args:
        grads: g_i [T, N_i].
        weights: W_i [N_i, K].
        term: h [T, r] and S [r, K] of adapters, or None.
        dtype: of the arithmetic.
    """
    dx: Tensor | None = None
    if term is not None and _rounds_once(grads[0]) and all(isinstance(weight, MatrixWeight) for weight in weights):
        dx, term = torch.mm(*term), None
    if len(weights) == 1 and isinstance(weights[0], EightBitWeight):
        return weights[0].backward(grads[0], term)
    for grad, weight in zip(grads, weights, strict=True):
        if dx is None:
            dx = weight.backward(grad)
        elif isinstance(weight, MatrixWeight):
            dx.addmm_(grad, weight.matrix(dtype))
        else:
            dx += weight.backward(grad)
    assert dx is not None
    return dx if term is None else add_low_rank_(dx, *term)


def precise_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right accumulated in float32 and not rounded to 16 bits; for float64 in float64."""
    if left.dtype not in (torch.bfloat16, torch.float16):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a matrix product with x: that of autocast where it is on and x is not float64."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Context in which tensors keep their dtype."""
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield


def _rounds_once(tensor: Tensor) -> bool:
    """Whether a product that is added to a tensor like this is rounded with the sum, and not before."""
    return tensor.device.type == "cpu"
