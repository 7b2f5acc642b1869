"""Experts in one call for all, and attention with sinks and slopes, on a GPU in bfloat16 against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wishbone.ops.expert_mlp import (
    ClampedGate,
    ExpertsOfReference,
    FP8Stack,
    GatedProduct,
    Int8Stack,
    NF4Stack,
    StackedAdapter,
    StackedLinear,
    expert_mlp,
    expert_mlp_reference,
    grouped,
)
from wishbone.ops.prefix_attention import Document, PrefixLayout, prefix_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def swiglu(u: Tensor) -> Tensor:
    gate, up = u.chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def clamped(u: Tensor) -> Tensor:
    gate, up = u[..., ::2].clamp(max=7.0), u[..., 1::2].clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def drawn(*shape: int, scale: float = 1.0, trained: bool = False) -> Tensor:
    """Numbers that bfloat16 holds, in float64."""
    return (scale * torch.randn(*shape, device="cuda")).bfloat16().double().requires_grad_(trained)


def errors(got: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((one.double() - other).norm() / other.norm()) for one, other in zip(got, exact, strict=True)]


@pytest.mark.parametrize(("gate", "function", "bias"), [("silu", swiglu, False), ("clamped", clamped, True)])
def test_experts_lose_what_bfloat16_loses(gate: str, function: Any, bias: bool) -> None:
    torch.manual_seed(0)
    experts, hidden, inner, tokens, rank = 8, 256, 192, 500, 12
    exact_leaves = [drawn(tokens, hidden, trained=True), drawn(tokens, 2, scale=0.3, trained=True)]
    chosen = torch.rand(tokens, experts - 1, device="cuda").topk(2).indices  # no token goes to the last
    sizes = ((2 * inner, hidden), (hidden, inner))
    weights = [drawn(experts, n, k, scale=k**-0.5) for n, k in sizes]
    biases = [drawn(experts, n) if bias else None for n, _ in sizes]
    for n, k in sizes:
        exact_leaves += [
            drawn(experts, rank, k, scale=k**-0.5, trained=True),
            drawn(experts, n, rank, scale=0.1, trained=True),
        ]
    direction = drawn(tokens, hidden)

    def run(op: Any, dtype: torch.dtype, own: Any) -> list[Tensor]:
        x, share = (leaf.detach().to(dtype).requires_grad_() for leaf in exact_leaves[:2])
        precise = torch.promote_types(dtype, torch.float32)
        factors = [leaf.detach().to(precise).requires_grad_() for leaf in exact_leaves[2:]]
        layers = [
            StackedLinear(
                weight.to(dtype),
                None if own_bias is None else own_bias.to(dtype),
                StackedAdapter(factors[2 * i], factors[2 * i + 1], 2.0),
            )
            for i, (weight, own_bias) in enumerate(zip(weights, biases, strict=True))
        ]
        y = op(x, chosen, share, *layers, own)
        return [y.detach(), *torch.autograd.grad((y * direction.to(dtype)).sum(), [x, share, *factors])]

    assert grouped.in_one_call(exact_leaves[0].bfloat16())
    exact = run(expert_mlp_reference, torch.float64, function)
    kernel = GatedProduct("silu") if gate == "silu" else ClampedGate(1.702, 7.0)
    got, usual = run(expert_mlp, torch.bfloat16, kernel), run(expert_mlp_reference, torch.bfloat16, function)
    for lost, own in zip(errors(got, exact), errors(usual, exact), strict=True):
        assert 0 < lost <= 2 * own, "rounding adapters at random has twice the variance"


@pytest.mark.parametrize("name", ["FP8Stack", "Int8Stack", "NF4Stack"])
def test_codes_are_computed_with_as_the_values_that_they_stand_for(name: str) -> None:
    """Policy and reference in one call, bit by bit as two calls with 16-bit weights."""
    if name == "NF4Stack":
        pytest.importorskip("bitsandbytes")
    form = {"FP8Stack": FP8Stack, "Int8Stack": Int8Stack, "NF4Stack": NF4Stack}[name]
    torch.manual_seed(0)
    experts, hidden, inner, tokens = 8, 256, 192, 500
    chosen = [torch.rand(tokens, experts, device="cuda").topk(2).indices for _ in range(2)]
    x, other, share = (drawn(tokens, size).bfloat16() for size in (hidden, hidden, 2))
    codes = [form.of(drawn(experts, *size, scale=0.1).bfloat16()) for size in ((2 * inner, hidden), (inner, hidden))]
    assert all(torch.equal(stack.matrices(torch.bfloat16), stack.dense()) for stack in codes)

    def run(weights: list[Tensor], together: bool) -> list[Tensor]:
        up, down = StackedLinear(weights[0]), StackedLinear(weights[1], transposed=True)
        gate, own = GatedProduct("silu"), x.clone().requires_grad_()
        half = ExpertsOfReference(other, chosen[1], share)
        y = expert_mlp(own, chosen[0], share, up, down, gate, half if together else None)
        beside = half.y if together else expert_mlp(other, chosen[1], share, up, down, gate)
        assert beside is not None
        return [y.detach(), beside, *torch.autograd.grad(y.sum(), [own])]

    assert all(map(torch.equal, run(codes, True), run([stack.dense() for stack in codes], False)))


@pytest.mark.parametrize(
    ("window", "sinks", "slopes"), [(None, True, False), (128, True, False), (None, False, True), (128, True, True)]
)
def test_attention_with_sinks_and_slopes(window: int | None, sinks: bool, slopes: bool) -> None:
    torch.manual_seed(0)
    layout = PrefixLayout((Document(0, 200, (900, 1100)), Document(1100, 1300, (1500, 1536))))
    leaves = [drawn(1, heads, 1536, 64, trained=True) for heads in (16, 4, 4)]
    leaves += [drawn(16, trained=True)] if sinks else []
    slope = torch.linspace(0.01, 0.5, 16, device="cuda", dtype=torch.float64) if slopes else None
    direction = drawn(1, 16, 1536, 64)

    def run(backend: Any, dtype: torch.dtype) -> list[Tensor]:
        own = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
        sink = own[3] if sinks else None
        options: Any = {"scale": 0.125, "window": window, "sinks": sink, "slopes": slope, "backend": backend}
        out = prefix_attention(*own[:3], layout, **options)
        return [out.detach(), *torch.autograd.grad((out * direction.to(dtype)).sum(), own)]

    assert max(errors(run("triton", torch.bfloat16), run("reference", torch.float64))) <= 1e-2
