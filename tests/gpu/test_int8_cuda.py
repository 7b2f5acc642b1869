"""Rotated int8 on a GPU: products, rows and gradients against their references, and a step of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wishbone.ops.fp8_quantize import (
    quantize_both,
    quantize_rows,
    rms_norm_quantize,
    rms_norm_quantize_both,
    rotated_int8,
    swiglu_quantize_both,
)
from wishbone.ops.fp8_quantize.reference import quantize_both_reference, quantize_rows_reference
from wishbone.ops.frozen_linear import Int8Weight, frozen_linear_reference
from wishbone.ops.low_rank_add import add_low_rank_

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROUNDING = {torch.bfloat16: 2.5e-3, torch.float16: 5e-4}


def drawn(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, device="cuda").to(dtype)


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(576, 1536), (4096, 14336), (272, 144)])
@pytest.mark.parametrize("tokens", [7, 300])
def test_products_are_those_of_the_reference(dtype: torch.dtype, n: int, k: int, tokens: int) -> None:
    torch.manual_seed(0)
    matrix, x = drawn(n, k) / k**0.5, drawn(tokens, k, dtype=dtype)
    x[:, 3] *= 20
    rows, expected = (quantize(matrix, form=rotated_int8(k)) for quantize in (quantize_rows, quantize_rows_reference))
    assert (rows.values.int() - expected.values.int()).abs().max() <= 1
    weight, g = Int8Weight(rows.values, rows.scale), drawn(tokens, n, dtype=dtype)
    exact = x.double().requires_grad_()
    y = frozen_linear_reference(exact, weight)
    (dx,) = torch.autograd.grad((y * g).sum(), exact)
    assert error(weight.forward(weight.prepare(x)), y.detach()) < ROUNDING[dtype]
    assert error(weight.backward(g), dx) < ROUNDING[dtype]
    assert error(dx, g.double() @ weight.dense().double()) < 0.02
    for rank in (16, 48, 64):
        term = drawn(tokens, rank, dtype=dtype), drawn(rank, k, dtype=dtype)
        added = dx + term[0].double() @ term[1].double()
        assert error(weight.backward(g, term), added) < ROUNDING[dtype]
        assert error(add_low_rank_(weight.backward(g), *term), added) < 2 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [576, 4096, 14336])
def test_rows_are_those_of_the_reference(dtype: torch.dtype, k: int) -> None:
    """A value in the middle between two integers may become the other one, where sums come in another order."""
    torch.manual_seed(0)
    form, reference = rotated_int8(k), drawn(200, k, dtype=dtype)
    x, weight = (reference + 0.01 * drawn(200, k)).to(dtype), torch.ones(k, dtype=dtype, device="cuda")

    def same(got: Any, expected: Any) -> bool:
        apart = (got.values.int() - expected.values.int()).abs()
        return int(apart.max()) <= 1 and float((apart > 0).float().mean()) < 1e-3

    assert all(map(same, quantize_both(x, reference, form=form), quantize_both_reference(x, reference, form=form)))
    normed, alone, _ = rms_norm_quantize(x, weight, 1e-6, form=form)
    assert same(alone, quantize_rows_reference(normed, form=form))
    apart = torch.empty(200, k + 9, device="cuda", dtype=dtype)[:, 3 : k + 3].copy_(x)
    assert same(quantize_rows(apart, form=form), quantize_rows_reference(x, form=form)), "not read 16 bytes at a time"
    normed, reference_normed, rows, _ = rms_norm_quantize_both(x, reference, weight, 1e-6, form=form)
    assert all(map(same, rows, quantize_both_reference(normed, reference_normed, form=form)))
    product, both = swiglu_quantize_both(x, reference, x, reference, form=form)
    assert product is not None and same(both.reference, quantize_rows_reference(product, form=form))
    assert not both.difference.values.any(), "policy and reference are the same"
