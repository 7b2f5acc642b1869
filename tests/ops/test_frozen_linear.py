"""Frozen linear layers in every form: products and gradients against the numbers that the form stands for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wishbone.ops.fp8_quantize import quantize_rows, rotated_int8
from wishbone.ops.frozen_linear import (
    DenseWeight,
    FP8BlockWeight,
    FP8Weight,
    FrozenWeight,
    Int8Weight,
    NF4Weight,
    frozen_linear,
    frozen_linear_reference,
    frozen_weight_of,
)
from wishbone.ops.frozen_linear import scratch as scratch_memory
from wishbone.ops.frozen_linear.scratch import scratch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
needs_bitsandbytes = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs bitsandbytes")
N, K, TOKENS = 160, 272, 23
FORMS = ["dense", "fp8 rows", "int8", "fp8 blocks", pytest.param("nf4", marks=needs_bitsandbytes)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of 128 x 128 blocks."""
    scale = torch.empty([-(-size // 128) for size in weight.shape], device=weight.device)
    codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            scale[i, j] = weight[part].abs().max() / 448
            codes[part] = (weight[part] / scale[i, j]).to(torch.float8_e4m3fn)
    return codes, scale


def linear_4bit(weight: Tensor, **options: Any) -> Any:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, quant_type="nf4", **options)
    layer.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4", **options)
    return layer.to(DEVICE)


def weight_in(form: str, dtype: torch.dtype = torch.float32) -> FrozenWeight:
    weight = normal(N, K) / K**0.5 * torch.logspace(0, -2, N, device=DEVICE)[:, None]
    if form == "dense":
        return DenseWeight(weight.to(dtype))
    if form == "nf4":
        layer = linear_4bit(weight.to(dtype))
        return NF4Weight(layer.weight, layer.weight.quant_state)
    if form == "fp8 blocks":
        return FP8BlockWeight(*blocks(weight))
    if form == "int8":
        rows = quantize_rows(weight, form=rotated_int8(K))
        return Int8Weight(rows.values, rows.scale)
    rows = quantize_rows(weight)
    return FP8Weight(rows.values, rows.scale)


def relative_error(value: Tensor, expected: Tensor) -> float:
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_those_of_the_reference(form: str, with_bias: bool) -> None:
    """float32 on the CPU; on CUDA FP8 products come out in bfloat16."""
    weight = weight_in(form)
    x, grad = normal(TOKENS, K, seed=1), normal(TOKENS, N, seed=2)
    bias = normal(N, seed=3) if with_bias else None
    exact = x.double().requires_grad_()
    y = frozen_linear_reference(exact, weight, bias)
    (dx,) = torch.autograd.grad((y * grad).sum(), exact)
    allowed = 4e-3 if CUDA else 1e-6
    got = weight.forward(weight.prepare(x), bias)
    assert got.dtype == x.dtype and got.shape == (TOKENS, N) and relative_error(got, y) < allowed
    got = weight.backward(grad)
    assert got.dtype == x.dtype and got.shape == (TOKENS, K) and relative_error(got, dx) < allowed


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_in_and_out(form: str, dtype: torch.dtype) -> None:
    weight = weight_in(form, dtype)
    x, grad, bias = (normal(*s, seed=i, dtype=dtype) for i, s in enumerate([(TOKENS, K), (TOKENS, N), (N,)]))
    exact = x.double().requires_grad_()
    y = frozen_linear_reference(exact, weight, bias)
    (dx,) = torch.autograd.grad((y * grad).sum(), exact)
    for value, expected in ((weight.forward(weight.prepare(x), bias), y), (weight.backward(grad), dx)):
        assert value.dtype == dtype and relative_error(value, expected) < 5e-3


def test_rows_in_fp8_differ_from_the_weights_they_were_by_what_rounding_does() -> None:
    """e4m3 errs by up to 1/16 and, uniformly spread, by 2.6%; products of two rounded factors by sqrt(2) of that."""
    weight = normal(N, K) / 20
    rows = quantize_rows(weight)
    form = FP8Weight(rows.values, rows.scale)
    x, grad = normal(TOKENS, K, seed=1), normal(TOKENS, N, seed=2)
    assert 0.02 < relative_error(form.dense(), weight) < 0.03
    assert 0.03 < relative_error(form.forward(form.prepare(x)), x @ weight.t()) < 0.045
    assert 0.03 < relative_error(form.backward(grad), grad @ weight) < 0.045


@pytest.mark.parametrize("form", FORMS)
def test_for_autograd(form: str) -> None:
    weight = weight_in(form)
    x = normal(2, TOKENS, K, seed=1).requires_grad_()
    bias, grad = normal(N, seed=3).requires_grad_(), normal(2, TOKENS, N, seed=2)
    y = frozen_linear(x, weight, bias)
    dx, db = torch.autograd.grad((y * grad).sum(), (x, bias))
    assert torch.equal(y.flatten(0, 1), weight.forward(weight.prepare(x.detach().flatten(0, 1)), bias.detach()))
    assert torch.equal(dx.flatten(0, 1), weight.backward(grad.flatten(0, 1)))
    assert relative_error(db, grad.sum((0, 1))) < 1e-6
    assert not frozen_linear(x.detach(), weight).requires_grad


def test_autocast_decides_the_dtype() -> None:
    x = normal(3, K).requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        y = frozen_linear(x, weight_in("fp8 rows"), normal(N))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


@pytest.mark.parametrize("form", FORMS)
def test_no_tokens(form: str) -> None:
    weight = weight_in(form)
    assert weight.forward(weight.prepare(normal(0, K))).shape == (0, N)
    assert weight.backward(normal(0, N)).shape == (0, K)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_all_outputs_of_its_token(bad: float) -> None:
    weight = weight_in("fp8 rows")
    x, grad = normal(3, K), normal(3, N)
    x[1, 7] = grad[1, 7] = bad
    for value in (weight.forward(weight.prepare(x)), weight.backward(grad)):
        assert not value[1].isfinite().any() and value[[0, 2]].isfinite().all()


def test_wrong_shapes_are_refused() -> None:
    rows = quantize_rows(normal(32, 48))
    with pytest.raises(ValueError, match="31 scales are not one for each of 32 rows"):
        FP8Weight(rows.values, rows.scale[:31])
    with pytest.raises(ValueError, match=r"shape \(32, 40\) is not a multiple of 16 both ways"):
        FP8Weight(rows.values[:, :40].contiguous(), rows.scale)
    with pytest.raises(ValueError, match="not one for each of"):
        FP8BlockWeight(rows.values, torch.ones(2, 1))
    with pytest.raises(ValueError, match="contiguous float8_e4m3fn matrix"):
        FP8Weight(rows.values.float(), rows.scale)
    with pytest.raises(ValueError, match="contiguous float8_e4m3fn matrix"):
        FP8Weight(rows.values.t(), rows.scale)


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


def test_forms_of_layers() -> None:
    linear = frozen(nn.Linear(32, 48))
    found = frozen_weight_of(linear)
    assert isinstance(found, DenseWeight) and found.weight.data_ptr() == linear.weight.data_ptr()
    assert (found.out_features, found.in_features) == (48, 32)
    rows = quantize_rows(linear.weight.detach())
    linear.weight = nn.Parameter(rows.values, requires_grad=False)
    assert frozen_weight_of(linear) is None  # codes without scales
    linear.weight_scale = nn.Parameter(rows.scale, requires_grad=False)
    found = frozen_weight_of(linear)
    assert isinstance(found, FP8Weight) and torch.equal(found.dense(), rows.dequantized())
    del linear.weight_scale
    linear.weight_scale_inv = nn.Parameter(torch.full((1, 1), 2.0), requires_grad=False)
    found = frozen_weight_of(linear)
    assert isinstance(found, FP8BlockWeight) and torch.equal(found.dense(), 2 * rows.values.float())


@needs_bitsandbytes
def test_form_of_a_4_bit_layer() -> None:
    layer = linear_4bit(normal(N, K), compress_statistics=True)
    found = frozen_weight_of(layer)
    assert isinstance(found, NF4Weight) and (found.out_features, found.in_features) == (N, K)
    x = normal(TOKENS, K)
    assert relative_error(found.forward(found.prepare(x)), layer(x)) < 1e-6
    assert found.dense().data_ptr() != found.dense().data_ptr()


def test_layers_of_unknown_form_run_their_own_forward() -> None:
    class OwnLinear(nn.Linear):
        pass

    hooked, patched, integers = (frozen(nn.Linear(16, 16)) for _ in range(3))
    hooked.register_forward_hook(lambda *_: None)
    patched.forward = lambda x: x
    integers.weight = nn.Parameter(torch.zeros(16, 16, dtype=torch.int8), requires_grad=False)
    subclass = frozen(nn.Linear(16, 16))
    subclass.weight = nn.Parameter(torch.ones(16, 16).as_subclass(type("Other", (Tensor,), {})), requires_grad=False)
    unknown = [nn.Linear(16, 16), frozen(OwnLinear(16, 16)), frozen(nn.Embedding(16, 16)), hooked, patched, integers]
    assert [frozen_weight_of(layer) for layer in [*unknown, subclass]] == [None] * 7


def test_scratch_memory_is_one_buffer_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_memory, "_held", {})
    device = torch.empty(0, device=DEVICE).device
    with torch.inference_mode():
        first = scratch((4, 8), torch.float32, device)
    second = scratch((8, 8), torch.bfloat16, device).fill_(1)
    assert second.data_ptr() == first.data_ptr() and second.shape == (8, 8) and second.dtype == torch.bfloat16
    assert scratch((5, 8), torch.float32, device).data_ptr() != first.data_ptr()
    weight, other = weight_in("fp8 blocks"), weight_in("dense")
    x = normal(TOKENS, K)
    y = weight.forward(x)
    other.forward(x)
    weight.backward(normal(TOKENS, N))
    assert torch.equal(y, weight.forward(x))


@pytest.mark.kernels
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (16, 16), (128, 256), (272, 160), (132, 12)])
def test_bytes_are_transposed(rows: int, columns: int) -> None:
    from wishbone.ops.frozen_linear.triton import transpose_bytes

    matrix = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    matrix = matrix.to(DEVICE)
    out = torch.zeros(columns, rows, dtype=torch.uint8, device=DEVICE)
    assert torch.equal(transpose_bytes(matrix, out), matrix.t())
    codes = matrix.view(torch.float8_e4m3fn)
    turned = transpose_bytes(codes, torch.empty(columns, rows, dtype=torch.float8_e4m3fn, device=DEVICE))
    assert torch.equal(turned.view(torch.uint8), matrix.t())


@pytest.mark.kernels
def test_bytes_come_in_words() -> None:
    from wishbone.ops.frozen_linear.triton import transpose_bytes

    with pytest.raises(ValueError, match="6 x 8 bytes does not consist of squares of 4 x 4"):
        transpose_bytes(torch.zeros(6, 8, dtype=torch.uint8), torch.zeros(8, 6, dtype=torch.uint8))


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (300, 130), (16, 272)])
def test_blocks_are_dequantized(dtype: torch.dtype, rows: int, columns: int) -> None:
    from wishbone.ops.frozen_linear.triton import dequantize_blocks

    codes, scale = blocks(normal(rows, columns))
    scale = scale if dtype == torch.float32 else scale.bfloat16().float() * 2**-4
    out = dequantize_blocks(codes, scale, torch.empty(rows, columns, dtype=dtype, device=DEVICE))
    exact = FP8BlockWeight(codes, scale).dense()
    assert torch.allclose(out.float(), exact, rtol=0 if dtype == torch.float32 else 2**-7, atol=0)


@pytest.mark.kernels
@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("block", [32, 64, 4096])
@pytest.mark.parametrize("shape", [(160, 272), (33, 129), (7, 9), (1, 3), (320, 256)])
def test_nf4_codes_are_what_the_equation_says(
    shape: tuple[int, int], block: int, nested: bool, dtype: torch.dtype
) -> None:
    """Bit by bit, but for bfloat16 in the interpreter, which cuts off where hardware rounds."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from wishbone.ops.frozen_linear.nf4_triton import dequantize_nf4
    from wishbone.ops.frozen_linear.reference import nf4_reference

    if CUDA and block == 32:
        pytest.skip("bitsandbytes may have no such blocks on CUDA")
    codes, state = quantize_4bit(
        normal(*shape, dtype=dtype), quant_type="nf4", blocksize=block, compress_statistics=nested
    )
    got = dequantize_nf4(codes, state, torch.full(shape, 7.0, dtype=dtype, device=DEVICE))
    expected = nf4_reference(codes, state)
    if dtype == torch.bfloat16 and not CUDA:
        assert ((got.float() - expected.float()).abs() <= 2**-7 * expected.float().abs()).all()
    else:
        assert torch.equal(got, expected)
    if CUDA and codes.shape[0] > 1:
        assert torch.equal(got, dequantize_4bit(codes, state))


@needs_bitsandbytes
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("nested", [True, False])
def test_nf4_weights_use_the_kernel_and_their_numbers_are_those_of_bitsandbytes(nested: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit

    from wishbone.ops.frozen_linear.nf4 import _has_kernel

    layer = linear_4bit(normal(N, 256, dtype=torch.bfloat16), compress_statistics=nested)
    weight = frozen_weight_of(layer)
    assert isinstance(weight, NF4Weight) and weight._usual and _has_kernel(weight.codes.device)
    assert torch.equal(weight.dense(), dequantize_4bit(layer.weight, layer.weight.quant_state))
