"""The experts of a mixture as one function, against the equation written expert by expert, and its Triton kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wishbone.ops.expert_mlp import (
    ClampedGate,
    ExpertsOfReference,
    GatedProduct,
    GateOf,
    StackedAdapter,
    StackedLinear,
    expert_mlp,
    expert_mlp_reference,
    grouped,
)
from wishbone.ops.expert_mlp.routing import Routing

TOKENS, HIDDEN, INNER, EXPERTS, CHOICES, RANK = 37, 32, 24, 5, 2, 3


def swiglu(u: Tensor) -> Tensor:
    gate, up = u.chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def inputs(
    *, transposed: bool = False, bias: bool = False, adapters: str = "both", trained: bool = True, seed: int = 0
) -> dict[str, Any]:
    """Arguments of `expert_mlp` in float64; one of the experts is chosen by no token."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=g, dtype=torch.float64)

    def linear(n: int, k: int, adapted: bool) -> StackedLinear:
        weight = draw(EXPERTS, k, n, scale=k**-0.5).transpose(1, 2) if transposed else draw(EXPERTS, n, k) * k**-0.5
        factors = draw(EXPERTS, RANK, k, scale=0.3), draw(EXPERTS, n, RANK, scale=0.3)
        for factor in factors:
            factor.requires_grad_(trained)
        return StackedLinear(
            weight, draw(EXPERTS, n) if bias else None, StackedAdapter(*factors, 2.0) if adapted else None
        )

    x, share = draw(TOKENS, HIDDEN).requires_grad_(), draw(TOKENS, CHOICES).abs().requires_grad_()
    chosen = torch.rand(TOKENS, EXPERTS - 1, generator=g).topk(CHOICES).indices
    up = linear(2 * INNER, HIDDEN, adapters in ("both", "up"))
    down = linear(HIDDEN, INNER, adapters in ("both", "down"))
    return {"x": x, "chosen": chosen, "share": share, "up": up, "down": down}


def leaves(arguments: dict[str, Any]) -> list[Tensor]:
    adapters = [arguments[name].adapter for name in ("up", "down")]
    factors = [factor for one in adapters if one is not None for factor in (one.a, one.b)]
    return [tensor for tensor in (arguments["x"], arguments["share"], *factors) if tensor.requires_grad]


def cast(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    def leaf(tensor: Tensor, to: torch.dtype = dtype) -> Tensor:
        return tensor.detach().to(to).requires_grad_(tensor.requires_grad)

    def linear(one: StackedLinear) -> StackedLinear:
        adapter = one.adapter
        if adapter is not None:  # adapters of 16-bit models are float32
            precise = torch.promote_types(dtype, torch.float32)
            adapter = StackedAdapter(leaf(adapter.a, precise), leaf(adapter.b, precise), adapter.scale)
        return StackedLinear(one.weight.to(dtype), None if one.bias is None else one.bias.to(dtype), adapter)

    return {
        "x": leaf(arguments["x"]),
        "share": leaf(arguments["share"]),
        "chosen": arguments["chosen"],
        "up": linear(arguments["up"]),
        "down": linear(arguments["down"]),
    }


def results(function: Any, arguments: dict[str, Any], gate: Any) -> list[Tensor]:
    """The output and the gradients of everything that is trained."""
    y = function(**arguments, gate=gate)
    direction = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).sin().to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * direction).sum(), leaves(arguments))]


def clamped(u: Tensor) -> Tensor:
    gate, up = u[..., ::2].clamp(max=0.7), u[..., 1::2].clamp(-0.7, 0.7)
    return (up + 1) * gate * torch.sigmoid(1.7 * gate)


def test_a_clamped_gate() -> None:
    arguments = inputs(bias=True)
    expected = results(expert_mlp_reference, arguments, clamped)
    for value, exact in zip(results(expert_mlp, arguments, ClampedGate(1.7, 0.7)), expected, strict=True):
        assert (value - exact).norm() <= 1e-12 * exact.norm()


@pytest.mark.parametrize("gate", [GatedProduct("silu"), GateOf(swiglu)], ids=["kernel", "function"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("adapters", ["both", "up", "down", "none"])
@pytest.mark.slow
def test_values_and_gradients(gate: Any, bias: bool, adapters: str) -> None:
    arguments = inputs(bias=bias, adapters=adapters, transposed=bias)
    expected = results(expert_mlp_reference, arguments, swiglu)
    got = results(expert_mlp, arguments, gate)
    assert len(got) == len(expected) == {"both": 7, "none": 3}.get(adapters, 5)
    for value, exact in zip(got, expected, strict=True):
        assert (value - exact).norm() <= 1e-12 * exact.norm()
    single = results(expert_mlp, cast(arguments, torch.float32), gate)
    for value, exact in zip(single, expected, strict=True):
        assert (value - exact).norm() <= 2e-6 * exact.norm()


def test_frozen_factors_and_an_input_without_gradient() -> None:
    arguments = inputs(trained=False)
    arguments["x"] = arguments["x"].detach()
    expected, got = (
        results(function, arguments, gate)
        for function, gate in ((expert_mlp_reference, swiglu), (expert_mlp, GatedProduct("silu")))
    )
    assert len(got) == len(expected) == 2
    for value, exact in zip(got, expected, strict=True):
        assert (value - exact).norm() <= 1e-12 * exact.norm()
    arguments["share"] = arguments["share"].detach()
    assert torch.equal(expert_mlp(**arguments, gate=GatedProduct("silu")), got[0])


def test_a_graph_can_be_used_only_once() -> None:
    y = expert_mlp(**inputs(), gate=GatedProduct("silu")).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        y.backward()


def test_little_is_kept_for_the_backward_pass() -> None:
    arguments = inputs(adapters="none")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        expert_mlp(**arguments, gate=GatedProduct("silu"))
    floats = {t.data_ptr(): t.numel() for t in kept if t.is_floating_point()}
    assert sum(floats.values()) == TOKENS * CHOICES * (2 * INNER + 1)


def in_bfloat16(arguments: dict[str, Any], gate: Any) -> list[float]:
    """Relative errors in bfloat16 against float64 with the same rounded numbers."""
    rounded = cast(arguments, torch.bfloat16)
    exact = results(expert_mlp_reference, cast(rounded, torch.float64), swiglu)
    got = results(expert_mlp, rounded, gate)
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]


@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_loses_what_ordinary_products_lose(bias: bool) -> None:
    arguments = inputs(bias=bias)
    rounded = cast(arguments, torch.bfloat16)
    exact = results(expert_mlp_reference, cast(rounded, torch.float64), swiglu)
    own = results(expert_mlp_reference, rounded, swiglu)
    usual = [float((a.double() - b).norm() / b.norm()) for a, b in zip(own, exact, strict=True)]
    assert all(lost <= 1.5 * one for lost, one in zip(in_bfloat16(arguments, GatedProduct("silu")), usual, strict=True))


@pytest.mark.kernels(on_gpus=False)
@pytest.mark.slow
@pytest.mark.parametrize("bias", [False, True])
def test_one_call_for_all_experts_loses_no_more(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs: PyTorch's grouped products, here on the CPU, and kernels that round at random."""
    arguments = inputs(bias=bias)
    usual = in_bfloat16(arguments, GatedProduct("silu"))
    monkeypatch.setattr(grouped, "in_one_call", lambda x: x.dtype == torch.bfloat16)
    monkeypatch.setattr("wishbone.ops.expert_mlp.triton.ROWS", 16)
    assert all(lost <= 2 * one for lost, one in zip(in_bfloat16(arguments, GatedProduct("silu")), usual, strict=True))


@pytest.mark.kernels(on_gpus=False)
def test_an_adapter_that_adds_nothing_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "in_one_call", lambda x: True)
    arguments = cast(inputs(bias=True, trained=False), torch.bfloat16)
    for name in ("up", "down"):
        arguments[name].adapter.b.zero_()
    bare = arguments | {n: StackedLinear(arguments[n].weight, arguments[n].bias) for n in ("up", "down")}
    got, expected = (expert_mlp(**one, gate=GatedProduct("silu")) for one in (arguments, bare))
    assert torch.equal(got, expected)


@pytest.mark.kernels(on_gpus=False)
def test_kernels_against_their_equations() -> None:
    from wishbone.ops.expert_mlp import triton as kernels

    g = torch.Generator().manual_seed(0)
    chosen = torch.rand(90, EXPERTS - 1, generator=g).topk(CHOICES).indices
    routing = Routing.of(chosen, EXPERTS)
    left, right = torch.randn(180, 40, generator=g).bfloat16(), torch.randn(180, 300, generator=g).bfloat16()
    exact = torch.stack([left[rows].double().t() @ right[rows].double() for rows in routing.slices()])
    assert exact[-1].norm() == 0, "an expert without rows"
    for got, expected in (
        (kernels.outer_by_expert(left, right, routing), exact),
        (kernels.outer_by_expert(right, left, routing), exact.transpose(1, 2)),
    ):
        assert (got - expected).norm() <= 1e-6 * expected.norm()
    assert (kernels.dots_of_rows(right, right) - right.double().square().sum(1)).abs().max() <= 1e-4
    share = torch.rand(90, CHOICES, generator=g)
    rows = right.float()
    for weights in (None, share):
        expected = (rows[routing.row].double() * (1 if weights is None else weights[..., None])).sum(1)
        assert (kernels.gathered_by_token(rows, routing, weights) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.kernels(on_gpus=False)
def test_the_kernel_of_the_clamped_gate() -> None:
    from wishbone.ops.expert_mlp import triton as kernels

    g = torch.Generator().manual_seed(0)
    u, dh = 2 * torch.randn(7, 60, generator=g), torch.randn(7, 30, generator=g)
    exact = [ClampedGate(1.7, 0.7).forward(u.double()), *ClampedGate(1.7, 0.7).backward_(dh.double(), u.double())]
    got = [kernels.clamped_gate(u, 1.7, 0.7), *kernels.clamped_gate_backward_(dh, u, 1.7, 0.7)]
    for value, expected in zip(got, exact, strict=True):
        assert (value - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.kernels(on_gpus=False)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_the_kernel_of_a_gate_with_shares(activation: Any) -> None:
    g = torch.Generator().manual_seed(0)
    routing = Routing.of(torch.rand(5, EXPERTS, generator=g).topk(CHOICES).indices, EXPERTS)
    u, unweighted = torch.randn(10, 2 * 24, generator=g), torch.randn(10, 24, generator=g)
    share = torch.rand(5, CHOICES, generator=g)
    exact = grouped.weighted_backward_(
        GatedProduct(activation), unweighted.double(), u.double(), share.double(), routing, keep=True
    )
    from wishbone.ops.expert_mlp import triton as kernels

    silu = activation == "silu"
    for keep in (True, False):
        left, du = unweighted.clone(), u.clone()
        dots = kernels.weighted_gate_backward_(left, du, share, routing, silu=silu, keep=keep)
        for value, expected in zip((left, du, dots), exact if keep else (unweighted, *exact[1:]), strict=True):
            assert expected is not None and (value - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.kernels(on_gpus=False)
def test_the_kernel_that_turns_codes_into_values() -> None:
    from wishbone.ops.expert_mlp import FP8Stack, Int8Stack
    from wishbone.ops.expert_mlp import triton as kernels
    from wishbone.ops.expert_mlp.rotated import form_of_rows

    weight = torch.randn(3, 20, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    stack, out = FP8Stack.of(weight), torch.empty(3, 20, 48)
    assert torch.equal(kernels.dequantize_rows(stack.codes, stack.scale, out), stack.matrices(torch.float32))
    for columns in (48, 40):  # in blocks of 16, and not rotated: tensor cores have no blocks of 8
        turned = Int8Stack.of(weight[..., :columns])
        block = form_of_rows(columns).block
        assert block == (16 if columns == 48 else 0)
        got = kernels.dequantize_rotated_rows(turned.codes, turned.scale, torch.empty(3, 20, columns), block)
        assert torch.equal(got, turned.matrices(torch.float32))


def test_policy_and_reference_in_one_call() -> None:
    arguments, other = inputs(bias=True), inputs(seed=1)
    adapters = [arguments[name].adapter for name in ("up", "down")]
    half = ExpertsOfReference(other["x"].detach(), other["chosen"], other["share"].detach(), None, adapters[1])
    y = expert_mlp(**arguments, gate=GatedProduct("silu"), reference_call=half)
    assert torch.equal(y, expert_mlp(**arguments, gate=GatedProduct("silu")))
    layers = [
        StackedLinear(arguments[n].weight, arguments[n].bias, a)
        for n, a in zip(("up", "down"), (None, adapters[1]), strict=True)
    ]
    expected = expert_mlp_reference(half.x, half.chosen, half.share, *layers, swiglu)
    assert half.y is not None and not half.y.requires_grad and (half.y - expected).norm() <= 1e-12 * expected.norm()
