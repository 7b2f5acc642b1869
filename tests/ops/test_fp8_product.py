"""The product in e4m3 that adds an adapter's term and a base in its end: the kernel against float64, who takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wishbone.ops.fp8_quantize import quantize_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.kernels


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize(("tokens", "sizes", "k", "rank"), [(150, (128, 256, 80), 272, 8), (70, (288,), 144, 20)])
@pytest.mark.parametrize("with_base", [False, True])
def test_the_kernel_is_the_equation(tokens: int, sizes: tuple[int, ...], k: int, rank: int, with_base: bool) -> None:
    """Tiles that the sizes do not fill, layers side by side, a base whose rows lie apart."""
    from wishbone.ops.frozen_linear.fp8_hopper import product_with_term

    n = sum(sizes)
    rows, weight = quantize_rows(normal(tokens, k)), quantize_rows(normal(n, k, seed=1, dtype=torch.float32))
    low, factor = normal(tokens, len(sizes) * rank, seed=2), normal(n, rank, seed=3)
    base = normal(tokens, n + 16, seed=4)[:, 8 : n + 8] if with_base else None
    got = product_with_term(rows, weight.values, weight.scale.view(-1), (low[:, :rank], factor), base, sizes=sizes)
    term = [
        part @ of.t() for part, of in zip(low.double().split(rank, 1), factor.double().split(list(sizes)), strict=True)
    ]
    exact = rows.dequantized().double() @ weight.dequantized().double().t() + torch.cat(term, 1)
    assert got.dtype == torch.bfloat16 and got.is_contiguous()
    if base is None:
        assert torch.allclose(got.double(), exact, rtol=2.0**-7, atol=1e-2)
        return
    total = base.double() + exact
    step = 2.0 ** (total.abs().log2().floor() - 7)
    off = (got.double() - total) / step
    assert float(off.abs().max()) < 1.01 and abs(float(off.mean())) < 0.02, "to either side, right on average"


def test_a_small_term_is_kept_on_average_beside_a_large_base() -> None:
    from wishbone.ops.frozen_linear.fp8_hopper import product_with_term

    base, low, factor = normal(256, 256), normal(256, 16, seed=1), 1e-4 * normal(256, 16, seed=2)
    rows, weight = quantize_rows(normal(256, 32, seed=3)), quantize_rows(normal(256, 32, seed=4))
    rows = rows._replace(scale=1e-6 * rows.scale)
    got = product_with_term(rows, weight.values, weight.scale.view(-1), (low, factor), base)
    addend = rows.dequantized().double() @ weight.dequantized().double().t() + low.double() @ factor.double().t()
    kept = ((got.double() - base.double()) * addend).sum() / addend.square().sum()
    assert abs(float(kept) - 1) < 0.1, "rounding to the nearest would keep nothing"
    nothing = rows._replace(values=torch.zeros_like(rows.values))
    none = product_with_term(nothing, weight.values, weight.scale.view(-1), (low, 0 * factor), base)
    assert torch.equal(none, base), "a policy that is its reference stays it"


def test_without_scales_and_without_a_term() -> None:
    from wishbone.ops.frozen_linear.fp8_hopper import product_with_term

    rows, weight = quantize_rows(normal(70, 48)), quantize_rows(normal(144, 48, seed=1))
    got = product_with_term(rows, weight.values, None, None)
    exact = rows.dequantized().double() @ weight.values.double().t()
    assert (got.double() - exact).norm() < 2.0**-8 * exact.norm()
    assert product_with_term(quantize_rows(normal(0, 48)), weight.values, None, None).shape == (0, 144)


def test_layers_that_do_not_fit_are_refused() -> None:
    from wishbone.ops.frozen_linear.fp8_hopper import product_with_term

    rows, weight = quantize_rows(normal(4, 32)), quantize_rows(normal(160, 32, seed=1))
    for rank, sizes in ((16, (80, 80)), (65, (160,)), (1, (128, 8, 8, 16))):
        term = normal(4, rank * len(sizes)), normal(160, rank)
        with pytest.raises(ValueError, match="do not fit into the end of a product"):
            product_with_term(rows, weight.values, None, term, sizes=sizes)


def test_products_that_take_it(monkeypatch: Any) -> None:
    from wishbone.ops.frozen_linear import fp8_hopper

    monkeypatch.setattr(fp8_hopper, "runs_on", lambda device: True)
    monkeypatch.setattr(fp8_hopper, "LONGEST_SUM", 64)
    monkeypatch.setattr(fp8_hopper, "LONGEST_SUM_WITH_BASE", 32)
    rows = quantize_rows(normal(100, 64))
    assert fp8_hopper.takes(rows, (), 16, with_base=False) and not fp8_hopper.takes(rows, (), 16, with_base=True)
    shorter = quantize_rows(normal(100, 32))
    assert fp8_hopper.takes(shorter, (128, 80), 64, with_base=True)
    assert not fp8_hopper.takes(shorter, (80, 128), 64, with_base=True)
    assert not fp8_hopper.takes(shorter, (), 65, with_base=True)
    assert not fp8_hopper.takes(quantize_rows(normal(64, 32)), (), 16, with_base=True)
    assert not fp8_hopper.takes(quantize_rows(normal(100, 32, dtype=torch.float32)), (), 16, with_base=True)
