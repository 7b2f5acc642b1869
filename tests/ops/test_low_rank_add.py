"""Adding a low-rank product to rounded numbers: right on average, the same every time, and the Triton kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wishbone.ops.low_rank_add import add_low_rank_
from wishbone.ops.low_rank_add.reference import rounded_at_random

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(
    rows: int, columns: int, rank: int, size: float = 1e-3, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    """y as a product leaves it in 16 bits, and factors whose product is about `size` of it."""
    g = torch.Generator().manual_seed(0)
    y, low, factor = (torch.randn(s, generator=g) for s in ((rows, columns), (rows, rank), (rank, columns)))
    return tuple(t.to(DEVICE, dtype) for t in (y, low, factor * size / rank**0.5))  # type: ignore[return-value]


@pytest.mark.parametrize("size", [1e-5, 1e-4, 1e-3, 1e-2, 1.0])
def test_the_sum_is_right_on_average_however_small_the_addend(size: float) -> None:
    y, low, factor = (t.cpu() for t in inputs(1500, 700, 16, size))
    addend = low.double() @ factor.double()
    moved = add_low_rank_(y.clone(), low, factor).double() - y.double()
    step = 2.0 ** (torch.maximum(y.abs(), (y + addend).abs()).log2().floor() - 7).double()
    assert ((moved - addend).abs() <= step * 1.001 + addend.abs() / 128).all(), "never further than one step"
    kept = (moved * addend).sum() / addend.square().sum()
    spread = (step.square() * (addend.abs() / step)).mul(addend.square()).sum().sqrt() / addend.square().sum()
    assert abs(kept - 1) < 4 * spread + 1e-4
    if size <= 1e-4:
        nearest = (y + addend.to(y.dtype)).double() - y.double()
        assert (nearest * addend).sum() / addend.square().sum() < 0.2, "what rounding to the nearest keeps"


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 1e-4)])
def test_each_seed_rounds_for_itself_and_is_right_on_average(dtype: torch.dtype, size: float) -> None:
    g = torch.Generator().manual_seed(0)
    y = (1 + torch.rand(1_000_000, generator=g)).to(dtype)  # in one binade, where steps are equal
    addend = size * torch.randn(1_000_000, generator=g)
    exact = y.double() + addend
    errors = [rounded_at_random(y, addend, seed).double() - exact for seed in (0, 1, 2)]
    for i, error in enumerate(errors):
        assert error.abs().max() <= 2 * torch.finfo(dtype).eps
        assert abs(float((error * addend).sum() / addend.square().sum())) < 4 * float(error.std() / addend.norm())
        for other in errors[:i]:
            assert abs(float((error * other).mean() / error.square().mean())) < 0.01, "independent"


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.kernels)])
def test_what_lies_in_y_is_part_of_the_addend_where_there_is_a_base(backend: Any) -> None:
    base, low, factor = inputs(150, 170, 16, 1e-4)
    change = (1e-4 * base.flip(0)).contiguous()
    got = add_low_rank_(change.clone(), low, factor, base=base, backend=backend)
    addend = change.float() + low.float() @ factor.float()
    exact = base.double() + addend.double()
    step = 2.0 ** (torch.maximum(base.abs().double(), exact.abs()).log2().floor() - 7)
    assert ((got.double() - exact).abs() <= 1.001 * step).all()
    kept = ((got.double() - base.double()) * addend.double()).sum() / addend.double().square().sum()
    assert abs(float(kept) - 1) < 0.2, "rounding to the nearest would keep nothing"
    none = add_low_rank_(torch.zeros_like(base), low, torch.zeros_like(factor), base=base, backend=backend)
    assert torch.equal(none, base)
    same = add_low_rank_(change.clone(), low, factor, base=base, backend="reference")
    assert (got != same).float().mean() < 0.01, "sums in another order may decide otherwise"


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.kernels)])
def test_with_a_total_y_stays_what_the_policy_differs_by(backend: Any) -> None:
    base, low, factor = inputs(150, 170, 16, 1e-4)
    change = (1e-4 * base.flip(0)).contiguous()
    total, alone = torch.empty(150, 340, dtype=base.dtype, device=DEVICE)[:, ::2], change.clone()
    got = add_low_rank_(change.clone(), low, factor, base=base, total=total, backend=backend)
    assert torch.equal(got, add_low_rank_(alone, low, factor, backend=backend))
    assert torch.equal(total, rounded_at_random(base, got.float())), "y decides, as it is rounded"
    none = add_low_rank_(torch.zeros_like(base), low, 0 * factor, base=base, total=total, backend=backend)
    assert not none.any() and torch.equal(total, base)


def test_other_dtypes_add_a_total_to_the_nearest() -> None:
    base, low, factor = inputs(9, 11, 4, dtype=torch.float64)
    total = torch.empty_like(base)
    got = add_low_rank_(base * 1e-3, low, factor, base=base, total=total)
    assert torch.allclose(got, base * 1e-3 + low @ factor, rtol=1e-14)
    assert torch.equal(total, base + got)


def test_other_dtypes_add_a_base_to_the_nearest() -> None:
    base, low, factor = inputs(9, 11, 4, dtype=torch.float64)
    change = base * 1e-3
    assert torch.allclose(
        add_low_rank_(change.clone(), low, factor, base=base), base + change + low @ factor, rtol=1e-14
    )


def test_a_zero_addend_changes_nothing() -> None:
    y, low, factor = inputs(65, 130, 4)
    y[0, :6] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3e38])
    got = add_low_rank_(y.clone(), low, torch.zeros_like(factor))
    assert torch.equal(got.nan_to_num(7.0), y.nan_to_num(7.0)) and got.isnan().sum() == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_stay_so(value: float) -> None:
    y, low, factor = inputs(20, 30, 4)
    low[3, 1] = value
    got = add_low_rank_(y, low, factor)
    assert not got[3].isfinite().any() and got[torch.arange(20, device=DEVICE) != 3].isfinite().all()


def test_rows_do_not_depend_on_where_they_stand() -> None:
    y, low, factor = inputs(70, 40, 8)
    whole = add_low_rank_(y.clone(), low, factor)
    rows = torch.tensor([69, 3, 3, 41], device=DEVICE)
    assert torch.equal(add_low_rank_(y[rows], low[rows], factor), whole[rows])


def test_other_dtypes_are_rounded_to_the_nearest() -> None:
    for dtype in (torch.float32, torch.float64):
        y, low, factor = inputs(9, 11, 4, dtype=dtype)
        assert torch.equal(add_low_rank_(y.clone(), low, factor), y.addmm(low, factor))


def test_a_backend_that_is_asked_for_is_used_or_refused() -> None:
    y, low, factor = inputs(9, 11, 4)
    with pytest.raises(ValueError, match="'fast' is not one of auto, reference, triton"):
        add_low_rank_(y, low, factor, backend="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rounds to 16 bits; y is torch.float32"):
        add_low_rank_(y.float(), low, factor, backend="triton")


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(1, 1, 1), (64, 128, 16), (65, 257, 16), (130, 70, 8), (33, 200, 3), (40, 129, 150)]
)
def test_the_kernel_is_the_reference(rows: int, columns: int, rank: int, dtype: torch.dtype) -> None:
    y, low, factor = inputs(rows, columns, rank, dtype=dtype)
    low, factor = (low * 8).round() / 8, (factor * 2**14).round() / 2**14  # sums of such products are exact
    expected = rounded_at_random(y, (low.double() @ factor.double()).float())
    assert torch.equal(add_low_rank_(y.clone(), low, factor, backend="reference"), expected)
    got = add_low_rank_(y.clone(), low, factor, backend="triton")
    assert torch.equal(got, expected)


@pytest.mark.kernels
def test_the_kernel_takes_parts_of_larger_matrices() -> None:
    y, low, factor = inputs(50, 300, 24)
    low, factor = (low * 8).round() / 8, (factor * 2**14).round() / 2**14
    wide, expected = y.clone(), y.clone()
    add_low_rank_(wide[:, 100:230], low[:, 8:20], factor.t().contiguous().t()[8:20, 100:230], backend="triton")
    add_low_rank_(expected[:, 100:230], low[:, 8:20], factor[8:20, 100:230], backend="reference")
    assert torch.equal(wide, expected)


@pytest.mark.kernels
def test_the_kernel_keeps_what_is_not_finite() -> None:
    y, low, factor = inputs(20, 30, 4)
    low[3, 1], low[4, 1] = float("nan"), float("inf")
    got = add_low_rank_(y.clone(), low, factor, backend="triton")
    assert not got[3:5].isfinite().any() and got[5:].isfinite().all() and got[:3].isfinite().all()


@pytest.mark.kernels
def test_no_rows_and_no_columns() -> None:
    for rows, columns in ((0, 5), (5, 0)):
        y, low, factor = inputs(rows, columns, 4)
        assert add_low_rank_(y, low, factor, backend="triton").shape == (rows, columns)
