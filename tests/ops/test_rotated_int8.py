"""Rows and products in rotated int8: the rotation, the reference written out, the Triton kernels against it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from absent_gpu import printed_by
from torch import Tensor

from wishbone.ops.fp8_quantize import (
    INT8_ROWS,
    QuantizedRows,
    quantize_both,
    quantize_rows,
    rms_norm,
    rms_norm_quantize,
    rms_norm_quantize_both,
    rotated_back,
    rotated_int8,
    rotation_block,
    swiglu_quantize,
    swiglu_quantize_both,
)
from wishbone.ops.fp8_quantize.rotation import hadamard, rotated
from wishbone.ops.frozen_linear import Int8Weight, frozen_linear_reference
from wishbone.ops.frozen_linear import int8 as int8_weight

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference", pytest.param("triton", marks=pytest.mark.kernels)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(got: QuantizedRows, expected: QuantizedRows, of_difference: bool = False) -> bool:
    """Whether rows are equal but for sums in another order: scales to 1e-6, few values by one.

    The kernels rotate policy and reference, and then subtract; float32 leaves a hundredth of a step in that.
    """
    apart = (got.values.int() - expected.values.int()).abs()
    return (
        got.values.dtype == expected.values.dtype == torch.int8
        and torch.allclose(got.scale, expected.scale, rtol=1e-3 if of_difference else 1e-6, atol=0)
        and int(apart.max()) <= 1
        and float((apart > 0).float().mean()) < (0.05 if of_difference else 0.01)
    )


def relative_error(value: Tensor, expected: Tensor) -> float:
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("block", [1, 2, 16, 128])
def test_a_rotation_is_orthogonal_symmetric_and_its_own_inverse(block: int) -> None:
    signs = hadamard(block, torch.float64, torch.device(DEVICE))
    assert set(signs.unique().tolist()) <= {-1.0, 1.0} and torch.equal(signs, signs.t())
    assert torch.equal(signs @ signs, block * torch.eye(block, dtype=torch.float64, device=DEVICE))
    x = normal(3, 2 * block).double()
    assert torch.allclose(rotated_back(rotated(x, block) / block**0.5, block), x)


def test_blocks_are_the_largest_powers_of_two_that_divide_a_row() -> None:
    assert [rotation_block(size) for size in (576, 1536, 4096, 14336, 272, 33)] == [64, 128, 128, 128, 16, 1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_values_are_the_nearest_integers_of_rotated_rows(backend: Any, dtype: torch.dtype) -> None:
    x = normal(4, 96, dtype=dtype)
    got = quantize_rows(x, form=rotated_int8(96), backend=backend)
    z = (x.double().cpu().view(4, 3, 32) @ hadamard(32, torch.float64, torch.device("cpu")) / 32**0.5).view(4, 96)
    scale = z.abs().amax(1, keepdim=True) / 127
    assert got.dtype == dtype and got.scale.shape == (4, 1)
    assert close(got, QuantizedRows((z / scale).round().to(DEVICE, torch.int8), scale.float().to(DEVICE), dtype))
    assert int(got.values.int().abs().max()) == 127


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_outlier_costs_its_row_little(backend: Any) -> None:
    """Without the rotation the others would share a few of the 255 values."""
    x = normal(8, 256)
    x[:, 7] = 60
    error = rotated_back(quantize_rows(x, form=rotated_int8(256), backend=backend).dequantized(), 128) - x
    plain = quantize_rows(x, form=INT8_ROWS, backend=backend).dequantized() - x
    assert error.norm() < 0.25 * plain.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_scaled_by_column_and_not_rotated(backend: Any) -> None:
    x, scale = normal(5, 48, dtype=torch.bfloat16), normal(48, seed=1).abs() * 1e-4
    got = quantize_rows(x, scale, form=INT8_ROWS, backend=backend)
    assert relative_error(got.dequantized(), x.double() * scale.double()) < 0.02
    assert close(got, quantize_rows(x.float() * scale, form=INT8_ROWS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(backend: Any, bad: float) -> None:
    x = normal(3, 32)
    x[1, 5] = bad
    got = quantize_rows(x, form=rotated_int8(32), backend=backend)
    assert got.scale.isfinite().flatten().tolist() == [True, False, True]
    rows = quantize_rows(normal(16, 32, seed=1), form=rotated_int8(32))
    y = Int8Weight(rows.values, rows.scale).forward(got)
    assert not y[1].isfinite().any() and y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_policy_and_reference_in_one_pass(backend: Any) -> None:
    form, reference = rotated_int8(192), normal(5, 192, dtype=torch.bfloat16)
    x = reference + 1e-2 * normal(5, 192, seed=1, dtype=torch.bfloat16)
    rows = quantize_both(x, reference, form=form, backend=backend)
    assert close(rows.reference, quantize_rows(reference, form=form))
    assert close(rows.difference, quantize_rows(x.float() - reference.float(), form=form), True)
    assert not quantize_both(x, x.clone(), form=form, backend=backend).difference.values.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norms_and_swiglu_quantize_what_they_write(backend: Any, dtype: torch.dtype) -> None:
    form, x, weight = rotated_int8(192), normal(5, 192, dtype=dtype) * 3, normal(192, seed=1, dtype=dtype)
    other = x + 1e-2 * normal(5, 192, seed=2, dtype=dtype)
    normed, rows, reciprocal = rms_norm_quantize(x, weight, 1e-5, form=form, backend=backend)
    assert close(rows, quantize_rows(normed, form=form))
    alone, reciprocal_alone = rms_norm(x, weight, 1e-5, backend=backend)
    assert torch.equal(normed, alone) and torch.equal(reciprocal, reciprocal_alone)
    normed, of_reference, both, _ = rms_norm_quantize_both(other, x, weight, 1e-5, form=form, backend=backend)
    expected = quantize_both(normed, of_reference, form=form)
    assert close(both.reference, expected.reference) and close(both.difference, expected.difference, True)
    product, rows = swiglu_quantize(x, weight.expand(5, 192), form=form, backend=backend)
    assert product is not None and close(rows, quantize_rows(product, form=form))
    changed, both = swiglu_quantize_both(
        other, weight.expand(5, 192), x, weight.expand(5, 192), form=form, backend=backend
    )
    assert changed is not None
    expected = quantize_both(changed, product, form=form)
    assert close(both.reference, expected.reference) and close(both.difference, expected.difference, True)


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("tokens", "n", "k"), [(70, 288, 272), (3, 16, 160), (150, 272, 144)])
@pytest.mark.parametrize("gpu", ["Turing", "Ampere", "Hopper"])
def test_kernel_of_the_product(monkeypatch: Any, dtype: torch.dtype, tokens: int, n: int, k: int, gpu: str) -> None:
    """Tiles that the sizes do not fill, a bias, the rotation of the gradient, a term; sums of integers are exact."""
    from wishbone.ops.frozen_linear import int8_hopper, int8_triton
    from wishbone.ops.frozen_linear.int8_triton import int8_product

    monkeypatch.setattr(int8_triton, "has_tensor_cores", lambda _: gpu != "Turing")
    monkeypatch.setattr(int8_hopper, "runs_on", lambda _: gpu == "Hopper")
    rows = quantize_rows(normal(tokens, k, dtype=dtype), form=INT8_ROWS)
    weight = quantize_rows(normal(n, k, seed=1), form=INT8_ROWS)
    bias = normal(n, seed=2, dtype=dtype)
    exact = rows.dequantized().double() @ weight.dequantized().double().t() + bias.double()
    rounding = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}[dtype]
    got = int8_product(rows, weight.values, weight.scale.view(-1), bias, turn=0)
    assert got.dtype == dtype and relative_error(got, exact) < rounding
    turned = rotated_back(rows.dequantized().double() @ weight.values.double().t(), 16)
    got = int8_product(rows, weight.values, None, None, turn=16)
    assert relative_error(got, turned) < max(rounding, 1e-3)
    low, factor = normal(tokens, 20, seed=3, dtype=dtype), normal(20, n, seed=4, dtype=dtype)
    got = int8_product(rows, weight.values, None, None, turn=16, term=(low, factor))
    assert relative_error(got, turned + low.double() @ factor.double()) < max(rounding, 1e-3)


@pytest.mark.kernels
def test_tiles_fit_into_shared_memory() -> None:
    from wishbone.ops.frozen_linear.int8_triton import tile_for

    for shared in (65_536, 101_376, 166_912, 232_448):
        for rows in (1, 64, 65, 10_000):
            assert tile_for(rows, shared).shared_bytes <= shared


@pytest.mark.skipif(find_spec("triton") is None or "TRITON_INTERPRET" in os.environ, reason="needs Triton's compiler")
@pytest.mark.parametrize(
    ("capability", "shared_bytes", "kernels"),
    [
        pytest.param(75, 65_536, "swiglu_both 4096", marks=pytest.mark.slow, id="T4 and RTX 20, the widest kernel"),
        pytest.param(75, 65_536, "all 4096", marks=pytest.mark.long, id="T4 and RTX 20"),
        pytest.param(80, 166_912, "all 576 4096 14336", marks=pytest.mark.long, id="A100"),
        pytest.param(86, 101_376, "all 576 4096 14336", marks=pytest.mark.long, id="RTX 30"),
        pytest.param(89, 101_376, "all 576 4096 14336", marks=pytest.mark.long, id="RTX 40 and L4"),
        pytest.param(90, 232_448, "all 576 4096 14336", marks=pytest.mark.long, id="H100"),
        pytest.param(100, 232_448, "all 576 4096 14336", marks=pytest.mark.long, id="B200"),
        pytest.param(120, 101_376, "all 576 4096 14336", marks=pytest.mark.long, id="RTX 50"),
    ],
)
def test_compiled_kernels_fit_into_the_shared_memory_of_gpus_that_are_not_here(
    capability: int, shared_bytes: int, kernels: str
) -> None:
    taken = printed_by("int8_shared_memory.py", capability, shared_bytes, *kernels.split())
    assert len(taken) == 2 * (len(kernels.split()) - 1) and all(size <= shared_bytes for size in taken.values()), taken


def test_the_gradient_is_that_of_the_quantized_model() -> None:
    """Beside the exact gradient of the quantized weights it has the rounding of g to int8 and no bias."""
    rows = quantize_rows(normal(160, 288) / 17, form=rotated_int8(288))
    weight = Int8Weight(rows.values, rows.scale)
    x, g = normal(400, 288, seed=1).double().requires_grad_(), normal(400, 160, seed=2)
    (dx,) = torch.autograd.grad((frozen_linear_reference(x, weight) * g).sum(), x)
    exact = g.double() @ weight.dense().double()
    assert relative_error(dx, exact) < 0.012
    assert abs(float((dx * exact).sum() / exact.square().sum()) - 1) < 1e-3
    assert relative_error(weight.backward(g), dx) < (4e-3 if DEVICE == "cuda" else 1e-6)


def test_sums_that_an_int32_cannot_hold_are_refused() -> None:
    longest = int8_weight.LONGEST_SUM // 16 * 16
    assert longest * 127**2 < 2**31 <= (longest + 16) * 127**2
    with pytest.raises(ValueError, match="can exceed an int32"):
        Int8Weight(torch.zeros(16, longest + 16, dtype=torch.int8), torch.ones(16))


def test_a_processor_whose_products_are_not_exact_multiplies_in_float32(monkeypatch: Any, caplog: Any) -> None:
    rows = quantize_rows(normal(32, 64), form=rotated_int8(64))
    weight, x = Int8Weight(rows.values.cpu(), rows.scale.cpu()), normal(5, 64, seed=1).cpu()
    exact = weight.forward(weight.prepare(x))
    int8_weight._sums_exactly.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.float() @ b.float()).clamp(-32768, 32767).int())
    try:
        assert relative_error(weight.forward(weight.prepare(x)), exact) < 1e-6
        assert "multiply in float32" in caplog.text
    finally:
        int8_weight._sums_exactly.cache_clear()
