"""Rows in FP8: the reference against the grid of e4m3 written out, the Triton kernels against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wishbone.ops import fp8_quantize
from wishbone.ops.fp8_quantize import (
    QuantizedRows,
    quantize_both,
    quantize_rows,
    quantize_side_by_side,
    rms_norm,
    rms_norm_backward,
    rms_norm_quantize,
    rms_norm_quantize_both,
    sum_rms_norm_quantize_both,
    swiglu_quantize,
    swiglu_quantize_both,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = pytest.param("triton", marks=pytest.mark.kernels)
BACKENDS = ["reference", TRITON]
BFLOAT16 = 2.0**-8 if torch.cuda.is_available() else 2.0**-7
"""Relative error of rounding to bfloat16: to the nearest, or towards zero, as Triton's interpreter does."""
GRID = sorted({m * 2.0**e for e in range(-9, 6) for m in range(16)} & {x / 512 for x in range(448 * 512 + 1)})
"""Numbers of e4m3 from 0 to 448: 4 significant bits, no finer than 2^-9."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close_rows(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows that lie apart in memory, and others that differ a little, as those of a policy from its reference's."""
    reference = normal(rows, columns + 9, dtype=dtype)[:, 3 : columns + 3]
    return reference, (reference.double() + 1e-2 * normal(rows, columns, seed=1).double()).to(dtype)


def nearest(value: float) -> float:
    """The number of e4m3 next to `value`; in the middle between two, the one with an even last bit."""
    low = max(x for x in GRID if x <= abs(value))
    high = min((x for x in GRID if x >= abs(value)), default=448.0)
    if abs(value) - low != high - abs(value):
        best = low if abs(value) - low < high - abs(value) else high
    else:
        best = low if GRID.index(low) % 2 == 0 else high
    return best if value >= 0 else -best


def same(a: QuantizedRows, b: QuantizedRows) -> bool:
    """Whether scales and values are equal, +0 and -0 taken as one."""
    return torch.equal(a.scale, b.scale) and torch.equal(a.values.float(), b.values.float())


def test_the_grid_is_that_of_e4m3() -> None:
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float().tolist()
    assert codes == GRID[:127] and len(GRID) == 127


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_are_the_nearest_numbers_of_the_grid(backend: Any) -> None:
    rows = normal(4, 48) * torch.logspace(0, -6, 48, device=DEVICE)
    rows[0, 0] = 3.0  # then row 0 holds, after scaling, the middle between two numbers of the grid, several times
    rows[0, 1:5] = 3.0 / 448 * torch.tensor([17.0, -19.0, 2.0**-10, 3 * 2.0**-10])
    rows[0].clamp_(-3, 3)
    got = quantize_rows(rows, backend=backend)
    assert got.values.dtype == torch.float8_e4m3fn and got.scale.shape == (4, 1) and got.scale.dtype == torch.float32
    for row, values, scale in zip(rows, got.values.float(), got.scale, strict=True):
        largest = float(row.abs().max())
        assert float(scale) == pytest.approx(largest / 448, rel=1e-7)
        factor = torch.tensor(448.0) / torch.tensor(largest)
        assert values.tolist() == [nearest(min(448.0, max(-448.0, float(x)))) for x in (row.cpu() * factor)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_column_scales_are_multiplied_in_first(backend: Any) -> None:
    x, scale = normal(5, 40, dtype=torch.bfloat16), normal(40, seed=1).abs() * 1e-4
    assert same(quantize_rows(x, scale, backend=backend), quantize_rows(x.float() * scale))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_zero_and_large_rows(backend: Any) -> None:
    """Gradients may be tiny: down to 2^-100 nothing is lost, below it there is no division by zero."""
    x = normal(5, 32)
    x *= torch.tensor([[1e-28], [0.0], [1e30], [1.0], [1e-38]], device=DEVICE)
    got = quantize_rows(x, backend=backend)
    assert got.scale.isfinite().all() and (got.scale > 0).all()
    error = (got.dequantized() - x).double().norm(dim=1) / x.double().norm(dim=1).clamp_min(1e-38)
    assert (error[[0, 2, 3]] < 0.05).all() and not got.dequantized()[1].any()
    assert (got.dequantized()[4].abs() < 1e-32).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(backend: Any, bad: float) -> None:
    x = normal(3, 32)
    x[1, 5] = bad
    got = quantize_rows(x, backend=backend)
    assert got.scale.isfinite().flatten().tolist() == [True, False, True]
    product = got.dequantized() @ normal(32, 4, seed=1)
    assert not product[1].isfinite().any() and product[[0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (3, 100), (7, 576), (0, 32)])
def test_shapes_and_dtypes(backend: Any, dtype: torch.dtype, rows: int, columns: int) -> None:
    x = normal(rows, columns + 9, dtype=dtype)[:, 4 : columns + 4]
    got = quantize_rows(x, backend=backend)
    assert got.values.shape == x.shape and got.values.is_contiguous() and got.dtype == dtype
    assert same(got, quantize_rows(x.contiguous()))
    assert same(quantize_rows(x.t().contiguous().t(), backend=backend), got)
    assert got.dequantized().dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [200, 2560, 4096])
def test_norm_in_one_pass(backend: Any, offset: float, dtype: torch.dtype, columns: int) -> None:
    """Sums depend on their order; whether a norm is quantized must not change it."""
    x, weight = normal(6, columns, dtype=dtype) * 3, normal(columns, seed=1, dtype=dtype)
    exact = torch.nn.functional.rms_norm(x.double(), (columns,), offset + weight.double(), 1e-5)
    normed, quantized, reciprocal = rms_norm_quantize(x, weight, 1e-5, offset=offset, backend=backend)
    assert normed.dtype == dtype
    assert torch.allclose(normed.double(), exact, rtol=2e-6 if dtype == torch.float32 else 2 * BFLOAT16, atol=1e-6)
    assert torch.allclose(reciprocal.double(), (x.double().square().mean(1) + 1e-5).rsqrt(), rtol=1e-6)
    assert same(quantized, quantize_rows(normed)) and same(quantized, quantize_rows(normed, backend=backend))
    alone, reciprocal_alone = rms_norm(x, weight, 1e-5, offset=offset, backend=backend)
    assert torch.equal(alone, normed) and torch.equal(reciprocal, reciprocal_alone)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_rounds_as_the_layers_of_transformers(offset: float) -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    layer = (GemmaRMSNorm if offset else LlamaRMSNorm)(64, eps=1e-6).to(DEVICE, torch.bfloat16)
    layer.weight.data = normal(64, seed=1, dtype=torch.bfloat16)
    x = normal(9, 64, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, layer.weight.data, 1e-6, offset=offset, backend="reference")[0], layer(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_backward_is_its_derivative(backend: Any, offset: float) -> None:
    x, weight, grad = normal(6, 70) * 3, normal(70, seed=1), normal(6, 70, seed=2)
    exact = x.double().requires_grad_()
    y = torch.nn.functional.rms_norm(exact, (70,), offset + weight.double(), 1e-5)
    (expected,) = torch.autograd.grad((y * grad.double()).sum(), exact)
    reciprocal = rms_norm(x, weight, 1e-5, offset=offset)[1]
    got = rms_norm_backward(grad, x, weight, reciprocal, offset=offset, backend=backend)
    assert got.dtype == x.dtype and (got.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_in_one_pass(backend: Any, dtype: torch.dtype) -> None:
    both = normal(5, 2 * 130, dtype=dtype) * 4
    gate, up = both[:, :130], both[:, 130:]
    exact = torch.nn.functional.silu(gate.double()) * up.double()
    product, quantized = swiglu_quantize(gate, up, backend=backend)
    assert product is not None and product.dtype == dtype
    rounding = 2.0**-22 if dtype == torch.float32 else BFLOAT16
    assert torch.allclose(product.double(), exact, rtol=rounding, atol=1e-6)
    assert same(quantized, quantize_rows(product))
    nothing, alone = swiglu_quantize(gate, up, keep=False, backend=backend)
    assert nothing is None and same(alone, quantized)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_differences_are_formed_before_anything_is_rounded(backend: Any, dtype: torch.dtype) -> None:
    x, close = close_rows(5, 130, dtype)
    got = quantize_both(close, x, backend=backend)
    assert got.difference.dtype == dtype and same(got.reference, quantize_rows(x.contiguous()))
    assert same(got.difference, quantize_rows(close.float() - x.float()))
    assert not quantize_both(x, x.contiguous(), backend=backend).difference.dequantized().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_policy_and_reference_in_one_pass(backend: Any, offset: float, dtype: torch.dtype) -> None:
    reference, x = close_rows(5, 130, dtype)
    weight = normal(130, seed=2, dtype=dtype)
    normed, other, rows, reciprocal = rms_norm_quantize_both(x, reference, weight, 1e-5, offset=offset, backend=backend)
    tolerance = {"rtol": 2e-6 if dtype == torch.float32 else 2 * BFLOAT16, "atol": 1e-6}
    for got, of in ((normed, x), (other, reference)):
        exact = torch.nn.functional.rms_norm(of.double(), (130,), offset + weight.double(), 1e-5)
        assert got.dtype == dtype and torch.allclose(got.double(), exact, **tolerance)
    assert torch.allclose(reciprocal.double(), (x.double().square().mean(1) + 1e-5).rsqrt(), rtol=1e-6)
    assert same(rows.reference, quantize_rows(other)) and same(rows.difference, quantize_both(normed, other).difference)
    equal = rms_norm_quantize_both(x, x.clone(), weight, 1e-5, offset=offset, backend=backend)
    assert torch.equal(equal[0], equal[1]) and not equal[2].difference.dequantized().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_both_on_the_way_to_their_norm(backend: Any, dtype: torch.dtype) -> None:
    reference, x = close_rows(5, 130, dtype)
    reference_added, added = (rows.flip(0) for rows in close_rows(5, 130, dtype))
    weight = normal(130, seed=2, dtype=dtype)
    total, reference_total, *normed = sum_rms_norm_quantize_both(
        x, added, reference, reference_added, weight, 1e-5, backend=backend
    )
    for got, one, other in ((total, x, added), (reference_total, reference, reference_added)):
        exact = one.double() + other.double()
        assert got.dtype == dtype and torch.allclose(got.double(), exact, rtol=BFLOAT16, atol=1e-6)
        if dtype == torch.float32 or DEVICE == "cuda":
            assert torch.equal(got, one + other)
    alone, other_alone, rows, reciprocal = rms_norm_quantize_both(total, reference_total, weight, 1e-5, backend=backend)
    assert torch.equal(normed[0], alone) and torch.equal(normed[1], other_alone) and torch.equal(normed[3], reciprocal)
    assert same(normed[2].reference, rows.reference) and same(normed[2].difference, rows.difference)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_gradient_is_added_in_the_norms(backend: Any, dtype: torch.dtype) -> None:
    x, grad, beside = (normal(5, 139, seed=seed, dtype=dtype)[:, 4:134] for seed in range(3))
    weight = normal(130, seed=3, dtype=dtype)
    reciprocal = rms_norm(x, weight, 1e-5)[1]
    alone = rms_norm_backward(grad, x, weight, reciprocal, backend=backend)
    both = rms_norm_backward(grad, x, weight, reciprocal, beside=beside, backend=backend)
    exact = alone.double() + beside.double()
    assert both.dtype == dtype and torch.allclose(both.double(), exact, rtol=BFLOAT16, atol=1e-6)
    if dtype == torch.float32 or DEVICE == "cuda":
        assert torch.equal(both, alone + beside)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_of_policy_and_reference_in_one_pass(backend: Any, dtype: torch.dtype) -> None:
    reference, both = (4 * rows for rows in close_rows(5, 260, dtype))
    halves = both[:, :130], both[:, 130:], reference[:, :130], reference[:, 130:]
    product, rows = swiglu_quantize_both(*halves, backend=backend)
    expected, _ = swiglu_quantize(*halves[:2], backend=backend)
    of_reference, expected_rows = swiglu_quantize(*halves[2:], backend=backend)
    assert product is not None and expected is not None and of_reference is not None
    assert torch.equal(product, expected) and same(rows.reference, expected_rows)
    assert same(rows.difference, quantize_both(product, of_reference).difference)
    nothing, alone = swiglu_quantize_both(*halves, keep=False, backend=backend)
    assert nothing is None and same(alone.reference, rows.reference) and same(alone.difference, rows.difference)


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_swiglu_that_holds_its_rows_is_the_one_that_reads_them_twice(dtype: torch.dtype, monkeypatch: Any) -> None:
    from wishbone.ops.fp8_quantize import triton

    reference, both = (4 * rows for rows in close_rows(5, 260, dtype))
    halves = both[:, :130], both[:, 130:], reference[:, :130], reference[:, 130:]
    product, held = swiglu_quantize_both(*halves, backend="triton")
    nothing, alone = swiglu_quantize_both(*halves, keep=False, backend="triton")
    monkeypatch.setattr(triton, "HELD_COLUMNS", 129)
    expected, rows = swiglu_quantize_both(*halves, backend="triton")
    assert product is not None and expected is not None and torch.equal(product, expected)
    assert same(held.reference, rows.reference) and same(held.difference, rows.difference)
    assert nothing is None and same(alone.difference, rows.difference)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(64, 16, 16), (5, 90), (7, 9, 11, 13), (33,)])
def test_matrices_side_by_side_are_one(backend: Any, sizes: tuple[int, ...]) -> None:
    parts = [normal(5, size + 3, seed=i, dtype=torch.bfloat16)[:, 1 : size + 1] for i, size in enumerate(sizes)]
    scale = normal(sum(sizes), seed=9).abs()
    got = quantize_side_by_side(parts, scale, backend=backend)
    assert same(got, quantize_rows(torch.cat(parts, 1), scale)) and got.dtype == torch.bfloat16
    empty = quantize_side_by_side([part[:0] for part in parts], scale, backend=backend)
    assert empty.values.shape == (0, sum(sizes))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: Any) -> None:
    x, weight = normal(0, 32), normal(32)
    normed, quantized, reciprocal = rms_norm_quantize(x, weight, 1e-6, backend=backend)
    assert normed.shape == quantized.values.shape == (0, 32) and reciprocal.shape == (0,)
    assert rms_norm_backward(x, x, weight, reciprocal, backend=backend).shape == (0, 32)
    assert swiglu_quantize(x, x, backend=backend)[1].scale.shape == (0, 1)


def test_float64_keeps_its_products_in_float64() -> None:
    rows = quantize_rows(normal(3, 16).double())
    assert rows.dequantized().dtype == torch.float64


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="'cuda' is not one of auto, reference, triton"):
        quantize_rows(normal(1, 16), backend="cuda")  # type: ignore[arg-type]


def test_public_names() -> None:
    assert all(hasattr(fp8_quantize, name) for name in fp8_quantize.__all__)
