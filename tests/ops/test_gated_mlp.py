"""A gated MLP as one function: values, gradients, tiles and the Triton kernels of its elementwise part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wishbone.ops.fp8_quantize import E4M3, E4M3_ROWS, INT8_ROWS, RowForm, quantize_rows
from wishbone.ops.frozen_linear import DenseWeight, FP8Weight
from wishbone.ops.gated_mlp import Activation, gated_mlp, gated_mlp_reference
from wishbone.ops.gated_mlp.elementwise import gated_backward_, gated_product
from wishbone.ops.lora_linear import Adapter, fuse_group

K, WIDE, TOKENS = 24, 40, 21
ACTIVATIONS: list[Activation] = ["silu", "gelu_tanh"]


class Block:
    """A random MLP; `form` says whether gate and up are two matrices, two in one buffer, or one matrix."""

    def __init__(
        self,
        activation: Activation = "silu",
        form: str = "separate",
        dtype: torch.dtype = torch.float64,
        adapted: tuple[bool, bool, bool] = (True, True, True),
        biased: bool = False,
        tokens: int = TOKENS,
    ) -> None:
        g = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) / shape[-1] ** 0.5

        shapes = [(2 * WIDE, K), (K, WIDE)] if form == "one matrix" else [(WIDE, K), (WIDE, K), (K, WIDE)]
        self.activation = activation
        self.x = (normal(3, tokens // 3, K) * 8).requires_grad_()
        matrices = [nn.Parameter(normal(*shape), requires_grad=False) for shape in shapes]
        assert form != "one buffer" or fuse_group(matrices[:2])
        self.weights = [DenseWeight(matrix) for matrix in matrices]
        self.biases = [normal(n) if biased else None for n, _ in shapes]
        self.adapters = [
            Adapter(normal(3, k).requires_grad_(), normal(n, 3).requires_grad_(), 0.5 + i) if has else None
            for i, ((n, k), has) in enumerate(zip(shapes, adapted, strict=False))
        ]
        self.direction = normal(3, tokens // 3, K) * 5

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, *(t for adapter in self.adapters if adapter for t in (adapter.a, adapter.b))]

    def output(self, function: Callable[..., Tensor] = gated_mlp, **options: int) -> Tensor:
        return function(self.x, self.weights, self.biases, self.adapters, activation=self.activation, **options)

    def gradients(self, function: Callable[..., Tensor] = gated_mlp, **options: int) -> list[Tensor]:
        return list(torch.autograd.grad((self.output(function, **options) * self.direction).sum(), self.leaves))


def relative_error(value: Tensor, expected: Tensor) -> float:
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", ["separate", "one buffer", "one matrix"])
@pytest.mark.parametrize("tile", [None, 1, 8, 20, 21, 100])
def test_values_and_gradients_are_those_of_the_equation(activation: Activation, form: str, tile: int | None) -> None:
    block = Block(activation, form, biased=True)
    expected = block.output(gated_mlp_reference)
    assert relative_error(block.output(tile_tokens=tile), expected) < 1e-12
    with torch.no_grad():
        assert relative_error(block.output(tile_tokens=tile), expected) < 1e-12
    for got, value in zip(block.gradients(tile_tokens=tile), block.gradients(gated_mlp_reference), strict=True):
        assert relative_error(got, value) < 1e-12


@pytest.mark.parametrize("adapted", [(False, True, False), (True, False, True), (False, False, False)])
@pytest.mark.parametrize("tile", [None, 8])
def test_some_layers_without_adapter(adapted: tuple[bool, bool, bool], tile: int | None) -> None:
    block = Block(adapted=adapted)
    assert relative_error(block.output(tile_tokens=tile), block.output(gated_mlp_reference)) < 1e-12
    for got, value in zip(block.gradients(tile_tokens=tile), block.gradients(gated_mlp_reference), strict=True):
        assert relative_error(got, value) < 1e-12


@pytest.mark.parametrize("tile", [None, 8])
def test_only_down_is_trained_and_the_input_is_not(tile: int | None) -> None:
    block = Block()
    down = block.adapters[2]
    assert down is not None
    for leaf in block.leaves:
        leaf.requires_grad_(leaf is down.a or leaf is down.b)
    got, expected = (
        torch.autograd.grad((block.output(f, **o) * block.direction).sum(), [down.a, down.b])
        for f, o in ((gated_mlp, {"tile_tokens": tile}), (gated_mlp_reference, {}))
    )
    for value, other in zip(got, expected, strict=True):
        assert relative_error(value, other) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_are_numerical_ones(activation: Activation) -> None:
    block = Block(activation)

    def function(x: Tensor, *factors: Tensor) -> Tensor:
        adapters = [Adapter(factors[2 * i], factors[2 * i + 1], 0.5 + i) for i in range(3)]
        return gated_mlp(x, block.weights, block.biases, adapters, activation=activation, tile_tokens=8)

    assert torch.autograd.gradcheck(function, block.leaves, fast_mode=True)  # every entry is compared above


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize("form", ["separate", "one buffer"])
def test_what_is_kept(form: str, tile: int | None) -> None:
    """Of what grows with the tokens: x, gate and up; with tiles x alone; beside them what is of the width of a rank."""
    block = Block(form=form)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        block.output(tile_tokens=tile)
    wide = sorted(t.shape[1] for t in saved if t.shape[0] == TOKENS and t.shape[1] > 6)
    outputs = {"separate": [WIDE, WIDE], "one buffer": [2 * WIDE]}[form]
    assert wide == [K] + (outputs if tile is None else [])


def test_a_second_backward_pass_is_refused() -> None:
    block = Block()
    loss = block.output().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rounding_is_no_worse_than_that_of_plain_layers(activation: Activation, dtype: torch.dtype) -> None:
    """Errors against float64, over the output and all gradients; factors are float32 in both."""
    block = Block(activation, dtype=dtype, tokens=210)
    block.adapters = [in_dtype(adapter, torch.float32) for adapter in block.adapters]
    exact = Block(activation, dtype=dtype, tokens=210)
    exact.x, exact.direction = exact.x.detach().double().requires_grad_(), exact.direction.double()
    exact.weights = [DenseWeight(weight.weight.double()) for weight in exact.weights]
    exact.adapters = [in_dtype(adapter, torch.float64) for adapter in exact.adapters]
    expected = [exact.output(gated_mlp_reference), *exact.gradients(gated_mlp_reference)]
    fused, plain = (
        sum(map(relative_error, [block.output(function), *block.gradients(function)], expected))
        for function in (gated_mlp, gated_mlp_reference)
    )
    assert 0 < fused <= plain * (1.1 if dtype == torch.float32 else 1)


def in_dtype(adapter: Adapter | None, dtype: torch.dtype) -> Adapter:
    assert adapter is not None
    factors = (factor.detach().to(dtype).requires_grad_() for factor in (adapter.a, adapter.b))
    return Adapter(*factors, adapter.scale)


def test_fp8_weights() -> None:
    """Each product is that of `FP8Weight`; activations between are the fused ones."""
    g = torch.Generator().manual_seed(0)
    shapes = [(48, 32), (48, 32), (32, 48)]
    weights = []
    for shape in shapes:
        rows = quantize_rows(torch.randn(shape, generator=g) / 5)
        weights.append(FP8Weight(rows.values.to(E4M3), rows.scale))
    x = torch.randn(10, 32, generator=g).requires_grad_()
    adapters = [
        Adapter(torch.randn(2, k, generator=g).requires_grad_(), torch.randn(n, 2, generator=g).requires_grad_(), 0.1)
        for n, k in shapes
    ]
    y = gated_mlp(x, weights, [None] * 3, adapters, activation="silu")

    def layer(i: int, value: Tensor) -> Tensor:
        frozen = weights[i].forward(weights[i].prepare(value))
        return frozen + 0.1 * value @ adapters[i].a.t() @ adapters[i].b.t()

    with torch.no_grad():
        product = nn.functional.silu(layer(0, x)) * layer(1, x)
        assert relative_error(y, layer(2, product)) < 1e-5
        bare = gated_mlp(x, weights, [None] * 3, [None] * 3, activation="silu")
        gate, up = (weights[i].forward(weights[i].prepare(x)) for i in (0, 1))
        assert torch.equal(bare, weights[2].forward(weights[2].prepare(nn.functional.silu(gate) * up)))
    y.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert all(a.a.grad is not None and a.b.grad.norm() > 0 for a in adapters)


@pytest.mark.parametrize("form", ["one buffer", "one matrix"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tile", [None, 4])
def test_gradient_of_fp8_weights_side_by_side(form: str, activation: Activation, tile: int | None) -> None:
    """The gradients of gate and up are quantized together, as rows of one matrix."""
    g = torch.Generator().manual_seed(0)
    into, down = (quantize_rows(torch.randn(shape, generator=g) / 5) for shape in ((96, 32), (32, 48)))
    whole, last = (FP8Weight(rows.values, rows.scale) for rows in (into, down))
    halves = [FP8Weight(whole.qweight[part], whole.scale[part]) for part in (slice(0, 48), slice(48, 96))]
    weights = [*halves, last] if form == "one buffer" else [whole, last]
    x = torch.randn(10, 32, generator=g).requires_grad_()
    a, b = torch.randn(2, 32, generator=g).requires_grad_(), torch.randn(48, 2, generator=g).requires_grad_()
    adapters = [Adapter(a, b, 0.1), None, None] if form == "one buffer" else [None, None]
    gated_mlp(x, weights, [None] * len(weights), adapters, activation=activation, tile_tokens=tile).sum().backward()

    with torch.no_grad():
        both = whole.forward(whole.prepare(x))
        if form == "one buffer":
            both[:, :48] += 0.1 * x @ a.t() @ b.t()
        gate, up = both.chunk(2, dim=1)
        gated_backward_(last.backward(torch.ones(10, 32)), gate, up, activation)
        expected = whole.backward(both)
        if form == "one buffer":
            expected += 0.1 * gate @ b @ a
    assert x.grad is not None and relative_error(x.grad, expected) < 1e-5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_elementwise_part_at_its_edges(activation: Activation) -> None:
    """Far from zero the activation is 0 or the identity, and nothing overflows."""
    gate = torch.tensor([[-1e4, -50.0, 0.0, 50.0, 1e4]])
    up, gradient = torch.full_like(gate, 3.0), torch.full_like(gate, 2.0)
    assert torch.allclose(gated_product(gate, up, activation), torch.tensor([[0.0, 0.0, 0.0, 150.0, 3e4]]))
    gated_backward_(gradient, gate, up, activation)
    assert torch.allclose(gate, torch.tensor([[0.0, 0.0, 3.0, 6.0, 6.0]]))
    assert torch.allclose(up, torch.tensor([[0.0, 0.0, 0.0, 100.0, 2e4]]))
    assert torch.allclose(gradient, torch.tensor([[0.0, 0.0, 0.0, 150.0, 3e4]]))


@pytest.mark.kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 100), (3, 1024), (2, 1025), (0, 8)])
def test_kernels_are_the_plain_part(activation: Activation, dtype: torch.dtype, rows: int, columns: int) -> None:
    kernels = pytest.importorskip("wishbone.ops.gated_mlp.triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(1)
    both = (torch.randn(rows, 2 * columns, generator=g) * 3).to(device, dtype)
    gradient = torch.randn(rows, columns, generator=g).to(device, dtype)
    expected_both, expected_gradient = both.double(), gradient.double()
    gate, up = both.chunk(2, dim=1)
    expected_gate, expected_up = expected_both.chunk(2, dim=1)

    close = {"rtol": max(torch.finfo(dtype).eps, 4e-6), "atol": 2e-6, "check_dtype": False}
    product = kernels.gated_product(gate, up, activation)
    assert product.is_contiguous() and product.dtype == dtype
    torch.testing.assert_close(product, gated_product(expected_gate, expected_up, activation), **close)
    kernels.gated_backward_(gradient, gate, up, activation)
    gated_backward_(expected_gradient, expected_gate, expected_up, activation)
    torch.testing.assert_close(gradient, expected_gradient, **close)
    torch.testing.assert_close(both, expected_both, **close)


@pytest.mark.kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "form"),
    [
        (1, 1, E4M3_ROWS),
        (5, 100, E4M3_ROWS),
        (5, 100, INT8_ROWS),
        (3, 1024, E4M3_ROWS),
        (2, 2049, E4M3_ROWS),
        (0, 8, E4M3_ROWS),
    ],
)
def test_the_kernel_that_quantizes_is_two_kernels_in_one(
    activation: Activation, dtype: torch.dtype, rows: int, columns: int, form: RowForm
) -> None:
    kernels = pytest.importorskip("wishbone.ops.gated_mlp.triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(1)
    both = (torch.randn(rows, 2 * columns, generator=g) * 3).to(device, dtype)
    gradient = torch.randn(rows, columns, generator=g).to(device, dtype)
    column_scale = torch.rand(2 * columns, generator=g).to(device) + 0.01
    expected_both, expected_gradient = both.clone(), gradient.clone()
    kernels.gated_backward_(expected_gradient, *expected_both.chunk(2, dim=1), activation)
    expected = quantize_rows(expected_both, column_scale, form=form, backend="triton")

    quantized = kernels.gated_backward_quantized_(gradient, both, activation, column_scale, form)
    assert torch.equal(both, expected_both) and torch.equal(gradient, expected_gradient)
    assert quantized.values.shape == both.shape and quantized.dtype == dtype
    assert torch.equal(quantized.scale, expected.scale)
    assert torch.equal(quantized.values.float(), expected.values.float())
    if rows and columns > 1:  # a number that is not finite reaches the scale of its row
        both[0, columns] = float("nan")
        scale = kernels.gated_backward_quantized_(gradient, both, activation, column_scale, form).scale
        assert not scale[0].isfinite() and scale[1:].isfinite().all()


class Counted(DenseWeight):
    """A weight that counts its products."""

    def __init__(self, weight: DenseWeight) -> None:
        super().__init__(weight.matrix(torch.float64))
        self.products = 0

    def matrix(self, dtype: torch.dtype) -> Tensor:
        self.products = getattr(self, "products", -1) + 1
        return super().matrix(dtype)


@pytest.mark.parametrize(("tile", "products"), [(None, (2, 1)), (7, (6, 3))])
def test_a_layer_that_is_recomputed_ends_where_the_backward_pass_has_what_it_needs(
    tile: int | None, products: tuple[int, int]
) -> None:
    """Products of gate in the forward pass and once more, of down in the forward pass alone; one tile or three."""
    block = Block()
    expected = block.gradients(tile_tokens=tile)
    block.weights = [Counted(weight) for weight in block.weights]

    def layer(x: Tensor) -> Tensor:
        return x + gated_mlp(x, block.weights, block.biases, block.adapters, activation="silu", tile_tokens=tile)

    y = checkpoint(layer, block.x, use_reentrant=False)
    assert block.weights[2].products == products[1]
    found = torch.autograd.grad(((y - block.x) * block.direction).sum(), block.leaves)
    tiles = products[1]  # a gradient of the input is a product with each weight for each tile, too
    assert [block.weights[i].products - tiles for i in (0, 2)] == [*products]
    for got, value in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(got, value)
