"""Linear layers with adapters as one function: values and gradients of the equation, in every dtype and arrangement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from wishbone.ops.fp8_quantize import E4M3, quantize_rows
from wishbone.ops.frozen_linear import DenseWeight, FP8Weight, FrozenWeight
from wishbone.ops.lora_linear import Adapter, fuse_group, lora_linears, lora_linears_reference
from wishbone.ops.lora_linear.group import LinearGroup
from wishbone.ops.lora_linear.one_buffer import joined_matrix, joined_weight

K, SIZES = 24, (32, 8, 16)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Linears = Callable[..., tuple[Tensor, ...]]


class Layers:
    """Random layers over one input; `ranks` has None for a layer without adapter."""

    def __init__(
        self,
        ranks: Sequence[int | None] = (4, 4, 2),
        biased: Sequence[bool] = (True, False, True),
        dtype: torch.dtype = torch.float64,
        adapter_dtype: torch.dtype | None = None,
        one_buffer: bool = False,
        seed: int = 0,
    ) -> None:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64) / shape[-1] ** 0.5

        kept = adapter_dtype or dtype
        self.x = (normal(3, 7, K) * 5).to(dtype).requires_grad_()
        matrices = [nn.Parameter(normal(n, K).to(dtype), requires_grad=False) for n in SIZES]
        assert not one_buffer or fuse_group(matrices)
        self.weights = [DenseWeight(matrix) for matrix in matrices]
        self.biases = [normal(n).to(dtype) if has else None for n, has in zip(SIZES, biased, strict=True)]
        self.adapters = [
            Adapter(normal(r, K).to(kept).requires_grad_(), normal(n, r).to(kept).requires_grad_(), 0.5 + i)
            if r
            else None
            for i, (n, r) in enumerate(zip(SIZES, ranks, strict=True))
        ]
        self.directions = [normal(3, 7, n).to(dtype) * 4 for n in SIZES]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, *(t for adapter in self.adapters if adapter for t in (adapter.a, adapter.b))]

    def outputs(self, function: Linears) -> tuple[Tensor, ...]:
        return function(self.x, self.weights, self.biases, self.adapters)

    def gradients(self, function: Linears) -> list[Tensor]:
        total = sum((y * d).sum() for y, d in zip(self.outputs(function), self.directions, strict=True))
        return list(torch.autograd.grad(total, self.leaves))

    def in_float64(self) -> Layers:
        other = Layers.__new__(Layers)
        other.x = self.x.detach().double().requires_grad_()
        other.weights = [DenseWeight(weight.weight.double()) for weight in self.weights]
        other.biases = [None if bias is None else bias.double() for bias in self.biases]
        other.adapters = [
            Adapter(a.a.detach().double().requires_grad_(), a.b.detach().double().requires_grad_(), a.scale)
            if a
            else None
            for a in self.adapters
        ]
        other.directions = [direction.double() for direction in self.directions]
        return other


def relative_error(value: Tensor, expected: Tensor) -> float:
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("one_buffer", [False, True])
@pytest.mark.parametrize(
    ("ranks", "biased"),
    [((4, 4, 2), (True, False, True)), ((4, None, 1), (False, True, False)), ((None,) * 3, (False,) * 3)],
)
def test_values_and_gradients_are_those_of_the_equation(ranks: Sequence, biased: Sequence, one_buffer: bool) -> None:
    layers = Layers(ranks, biased, one_buffer=one_buffer)
    for got, expected in zip(layers.outputs(lora_linears), layers.outputs(lora_linears_reference), strict=True):
        assert got.shape == expected.shape and relative_error(got, expected) < 1e-12
    expected_gradients = layers.gradients(lora_linears_reference)
    for got, expected in zip(layers.gradients(lora_linears), expected_gradients, strict=True):
        assert relative_error(got, expected) < 1e-12
    with torch.no_grad():
        for got, expected in zip(layers.outputs(lora_linears), layers.outputs(lora_linears_reference), strict=True):
            assert relative_error(got, expected) < 1e-12


@pytest.mark.slow
def test_numerical_derivatives() -> None:
    layers = Layers()

    def function(x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        adapters = [Adapter(factors[2 * i], factors[2 * i + 1], 0.5 + i) for i in range(3)]
        return lora_linears(x, layers.weights, layers.biases, adapters)

    assert torch.autograd.gradcheck(function, layers.leaves, fast_mode=True)  # every entry is compared above


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_no_worse_than_that_of_plain_layers(dtype: torch.dtype) -> None:
    """Against float64, with float32 factors; the plain way casts them in the graph."""
    layers = Layers(dtype=dtype, adapter_dtype=torch.float32)
    exact = layers.in_float64()
    slack = 1.2
    values = zip(*(one.outputs(f) for one, f in cases(layers, exact)), strict=True)
    gradients = zip(*(one.gradients(f) for one, f in cases(layers, exact)), strict=True)
    for got, plain, expected in [*values, *gradients]:
        assert relative_error(got, expected) <= slack * relative_error(plain, expected) + torch.finfo(dtype).eps / 8
    assert all(g.dtype == torch.float32 for g in layers.gradients(lora_linears)[1:])


def cases(layers: Layers, exact: Layers) -> list[tuple[Layers, Linears]]:
    return [(layers, lora_linears), (layers, lora_linears_reference), (exact, lora_linears_reference)]


def test_gradients_of_factors_are_not_rounded_to_16_bits() -> None:
    """A sum over tokens that bfloat16 could not hold: 1 and 2^-10 in one entry."""
    x = torch.zeros(2, K, dtype=torch.bfloat16)
    x[0, 0], x[1, 0] = 1.0, 2.0**-10
    adapter = Adapter(torch.ones(1, K, requires_grad=True), torch.ones(SIZES[1], 1, requires_grad=True))
    weight = DenseWeight(torch.zeros(SIZES[1], K, dtype=torch.bfloat16))
    (y,) = lora_linears(x, [weight], [None], [adapter])
    y.sum().backward()
    assert adapter.b.grad is not None and adapter.b.grad[0, 0] == 1 + 2.0**-10


def test_the_input_is_kept_once_and_nothing_else_that_is_wide() -> None:
    layers = Layers()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layers.outputs(lora_linears)
    wide = [t for t in saved if t.shape[0] == 21]
    assert sorted(t.shape for t in wide) == [(21, 10), (21, K)]
    assert layers.x.data_ptr() in [t.data_ptr() for t in wide]


def test_outputs_that_nothing_reads_and_frozen_factors() -> None:
    layers = Layers((4, 4, None))
    first, second, _ = layers.adapters
    assert first is not None and second is not None
    first.a.requires_grad_(False)
    found = []
    for function in (lora_linears, lora_linears_reference):
        loss = (layers.outputs(function)[1] * layers.directions[1]).sum()
        found.append(torch.autograd.grad(loss, [layers.x, second.a, second.b, first.b], allow_unused=True))
    assert found[0][3] is None and found[1][3] is None
    for value, expected in zip(found[0][:3], found[1][:3], strict=True):
        assert relative_error(value, expected) < 1e-12


def test_autocast_gives_its_dtype_and_float32_gradients() -> None:
    layers = Layers(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layers.outputs(lora_linears)
        gradients = layers.gradients(lora_linears)
    assert {y.dtype for y in got} == {torch.bfloat16} and {g.dtype for g in gradients} == {torch.float32}
    for value, expected in zip(got, layers.outputs(lora_linears_reference), strict=True):
        assert 0 < relative_error(value, expected) < 1e-2
    for value, expected in zip(gradients, layers.gradients(lora_linears_reference), strict=True):
        assert 0 < relative_error(value, expected) < 2e-2


def test_layers_over_fp8_weights() -> None:
    """The frozen part is that of `FP8Weight`, the low-rank part the equation's."""
    layers = Layers((4, None, 4), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 32, generator=generator).requires_grad_()
    weights = []
    for n in SIZES[:1] + SIZES[2:]:
        rows = quantize_rows(torch.randn(n, 32, generator=generator) / 6)
        weights.append(FP8Weight(rows.values.to(E4M3), rows.scale))
    adapters = [
        Adapter(torch.randn(4, 32, generator=generator).requires_grad_(), a.b.detach().requires_grad_(), a.scale)
        for a in layers.adapters
        if a is not None
    ]
    outputs = lora_linears(x, weights, [None, None], adapters)
    total = torch.zeros(())
    for y, weight, adapter in zip(outputs, weights, adapters, strict=True):
        frozen = weight.forward(weight.prepare(x.detach()))
        expected = frozen + adapter.scale * x @ adapter.a.t() @ adapter.b.t()
        assert relative_error(y, expected) < 1e-5
        total = total + y.square().sum()
    got = torch.autograd.grad(total, x)[0]
    expected = sum(
        w.backward(2 * y.detach()) + a.scale * 2 * y.detach() @ a.b @ a.a
        for w, y, a in zip(weights, outputs, adapters, strict=True)
    )
    assert relative_error(got, expected.detach()) < 1e-5


def test_gradients_of_fp8_layers_in_one_buffer_are_quantized_as_one_row() -> None:
    """One product instead of one a layer; its error is that of products for themselves."""
    generator = torch.Generator().manual_seed(1)
    sizes, k = (64, 32, 32), 256
    rows = quantize_rows(torch.randn(sum(sizes), k, generator=generator) / 16)
    together = [FP8Weight(q, s) for q, s in zip(rows.values.split(sizes), rows.scale.split(sizes), strict=True)]
    apart = [FP8Weight(weight.qweight.clone(), weight.scale.clone()) for weight in together]
    grads = [
        (size * torch.randn(50, n, generator=generator)).bfloat16() for n, size in zip(sizes, (1, 0.3, 3), strict=True)
    ]
    exact = sum(g.double() @ weight.dense().double() for g, weight in zip(grads, apart, strict=True))
    errors = []
    for weights in (together, apart):
        group = LinearGroup(weights, [None] * 3, [None] * 3, torch.bfloat16)
        dx = group.input_gradient(grads, None)
        assert dx.dtype == torch.bfloat16
        errors.append(relative_error(dx, exact))
    assert errors[0] < 1.05 * errors[1] and errors[0] < 0.03
    joined = FP8Weight(rows.values, rows.scale)
    group = LinearGroup(together, [None] * 3, [None] * 3, torch.bfloat16)
    assert torch.equal(group.input_gradient(grads, None), joined.backward(torch.cat(grads, 1)))


def test_no_tokens() -> None:
    layers = Layers()
    x = layers.x[:, :0]
    outputs = lora_linears(x, layers.weights, layers.biases, layers.adapters)
    assert [y.shape for y in outputs] == [(3, 0, n) for n in SIZES]
    sum(y.sum() for y in outputs).backward()
    assert layers.adapters[0].b.grad.abs().sum() == 0


def test_one_buffer_changes_no_value_and_no_shape() -> None:
    linears = [nn.Linear(K, n) for n in SIZES]
    for linear in linears:
        linear.weight.requires_grad_(False)
    before = [linear.weight.clone() for linear in linears]
    assert joined_matrix([linear.weight for linear in linears]) is None
    assert fuse_group([linear.weight for linear in linears])
    assert all(torch.equal(linear.weight, old) for linear, old in zip(linears, before, strict=True))
    joined = joined_matrix([linear.weight for linear in linears])
    assert joined is not None and torch.equal(joined, torch.cat(before))
    assert joined_matrix([linears[1].weight, linears[0].weight]) is None
    linears[1].to(torch.float64).to(torch.float32)
    assert joined_matrix([linear.weight for linear in linears]) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda weights: weights[1].requires_grad_(),
        lambda weights: weights.__setitem__(1, weights[0]),
        lambda weights: weights.__setitem__(1, nn.Parameter(torch.ones(8, 2 * K)[:, :K], requires_grad=False)),
        lambda weights: weights.__setitem__(1, nn.Parameter(torch.ones(8, K + 1), requires_grad=False)),
        lambda weights: weights.__setitem__(1, nn.Parameter(torch.ones(8, K).half(), requires_grad=False)),
    ],
)
def test_one_buffer_is_not_made_where_it_would_not_be_safe(spoil: Callable[[list[nn.Parameter]], None]) -> None:
    weights = [nn.Parameter(torch.randn(n, K), requires_grad=False) for n in SIZES]
    spoil(weights)
    addresses = [weight.data_ptr() for weight in weights]
    assert not fuse_group(weights)
    assert [weight.data_ptr() for weight in weights] == addresses


def test_fp8_weights_in_one_buffer_are_one_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    codes, scales = [], []
    for rows in (32, 16):
        quantized = quantize_rows(torch.randn(rows, 48, generator=generator))
        codes.append(torch.nn.Parameter(quantized.values, requires_grad=False))
        scales.append(torch.nn.Parameter(quantized.scale, requires_grad=False))
    separate = [FP8Weight(q.clone(), s.clone()) for q, s in zip(codes, scales, strict=True)]
    assert joined_weight(separate, torch.float32) is None
    assert fuse_group(codes) and fuse_group(scales)
    together = [FP8Weight(q, s) for q, s in zip(codes, scales, strict=True)]
    adapters = [
        Adapter(torch.randn(3, 48, generator=generator), torch.randn(n, 3, generator=generator)) for n in (32, 16)
    ]
    x = torch.randn(7, 48, generator=generator)
    plain = LinearGroup(separate, [None, torch.ones(16)], adapters, torch.float32)
    joined = LinearGroup(together, [None, torch.ones(16)], adapters, torch.float32, join=True)
    expected, _ = plain.forward(x)
    outputs, _ = joined.forward(x)
    for y, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(y, wanted)
    grads = [torch.randn(7, n, generator=generator) for n in (32, 16)]
    side_by_side = torch.cat(grads, 1)
    h = joined.down(grads)
    dx = joined.input_gradient(grads, h, side_by_side)
    whole = FP8Weight(
        torch.cat([q.view(torch.uint8) for q in codes]).view(torch.float8_e4m3fn), torch.cat(list(scales))
    )
    torch.testing.assert_close(dx, whole.backward(side_by_side) + h @ joined.a)
    exact = sum(g @ w.dense() for g, w in zip(grads, separate, strict=True)) + h @ joined.a
    for rounded in (dx, plain.input_gradient(grads, h)):
        assert (rounded - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("form", ["separate", "one buffer", "fp8"])
def test_a_small_adapter_is_not_rounded_away_in_bfloat16(form: str, biased: bool) -> None:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(DEVICE)

    parameters = [nn.Parameter(normal(96, 64).bfloat16(), requires_grad=False) for _ in range(2)]
    assert form != "one buffer" or fuse_group(parameters)
    weights: list[FrozenWeight] = [DenseWeight(parameter) for parameter in parameters]
    if form == "fp8":
        rows = [quantize_rows(parameter) for parameter in parameters]
        weights = [FP8Weight(one.values.to(E4M3), one.scale) for one in rows]
    biases = [normal(96).bfloat16() if biased else None for _ in range(2)]
    factors = [Adapter(normal(8, 64), normal(96, 8) * 1e-3) for _ in range(2)]
    x, upstream = normal(2000, 64).bfloat16(), normal(2000, 96).bfloat16()

    def outputs(adapters: Sequence[Adapter | None], graph: bool) -> list[Tensor]:
        leaf = x.clone().requires_grad_(graph)
        ys = lora_linears(leaf, weights, biases, adapters)
        return [*ys, *(torch.autograd.grad(ys, leaf, [upstream, upstream]) if graph else ())]

    addends = [x.double() @ f.a.double().t() @ f.b.double().t() for f in factors]
    addends.append(sum(upstream.double() @ f.b.double() @ f.a.double() for f in factors))  # type: ignore[arg-type]
    for graph in (False, True):
        moved = zip(outputs(factors, graph), outputs([None, None], graph), addends, strict=False)
        for with_adapter, without, addend in moved:
            kept = ((with_adapter.double() - without.double()) * addend).sum() / addend.square().sum()
            assert abs(kept - 1) < 0.05, "rounded to the nearest after the product, 0.6 or less of it is left"


def test_a_joined_product_with_biases_rounds_as_single_ones_do() -> None:
    g = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(n, 64, generator=g).bfloat16(), requires_grad=False) for n in (96, 32, 32)]
    assert fuse_group(parameters)
    biases = [torch.randn(96, generator=g).bfloat16(), None, torch.randn(32, generator=g).bfloat16()]
    x = torch.randn(50, 64, generator=g).bfloat16()
    args = [DenseWeight(parameter) for parameter in parameters], biases, [None] * 3, torch.bfloat16
    together, _ = LinearGroup(*args, join=True).forward(x)
    single, _ = LinearGroup(*args).forward(x)
    for y, expected in zip(together, single, strict=True):
        assert torch.equal(y, expected)
