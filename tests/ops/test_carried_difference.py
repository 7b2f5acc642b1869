"""The carried difference of policy and reference: float64 first, then 16 bits, then Triton's kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.carried_difference import (
    PolicyAndReference,
    gated_product_in_lockstep_,
    rms_norm_in_lockstep,
    sum_in_lockstep,
)
from wishbone.ops.carried_difference.autograd import difference_of, sum_with_graph
from wishbone.ops.fp8_quantize import E4M3_ROWS, RowForm, quantize_rows, rotated_int8

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = pytest.param("triton", marks=pytest.mark.kernels)
BACKENDS = ["reference", TRITON]
ROUNDING = 2.0**-8 if torch.cuda.is_available() else 2.0**-7
"""Of bfloat16: to the nearest, or towards zero, as Triton's interpreter does."""


def normal(*shape: int, seed: int, size: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(DEVICE, dtype)


def rms_norm(x: Tensor, weight: Tensor, offset: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (offset + weight)


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


Part = Callable[[Any, torch.dtype, float], tuple[PolicyAndReference, Tensor, Tensor]]


def summed(backend: Any, dtype: torch.dtype, size: float) -> tuple[PolicyAndReference, Tensor, Tensor]:
    """Results, and what the reference's and the policy's are in float64."""
    r, o = (normal(3, 5, 70, seed=i, dtype=dtype) for i in (0, 1))
    d, e = (normal(3, 5, 70, seed=i, size=size, dtype=dtype) for i in (2, 3))
    base = r.double() + o.double()
    return sum_in_lockstep(r, d, o, e, backend=backend), base, base + d.double() + e.double()


def normed(offset: float) -> Part:
    def part(backend: Any, dtype: torch.dtype, size: float) -> tuple[PolicyAndReference, Tensor, Tensor]:
        r, d = normal(7, 80, seed=0, dtype=dtype)[:, 5:75], normal(7, 70, seed=1, size=size, dtype=dtype)
        weight = 1 + normal(70, seed=2, size=0.1, dtype=dtype)
        halves, rows, reciprocal = rms_norm_in_lockstep(r, d, weight, 1e-5, offset=offset, backend=backend)
        own = r.double() + d.double()
        assert rows is None
        assert torch.allclose(reciprocal.double(), (own.square().mean(-1) + 1e-5).rsqrt(), rtol=1e-5)
        return halves, rms_norm(r.double(), weight.double(), offset), rms_norm(own, weight.double(), offset)

    return part


def gated(silu: bool) -> Part:
    def part(backend: Any, dtype: torch.dtype, size: float) -> tuple[PolicyAndReference, Tensor, Tensor]:
        base, change = normal(6, 2 * 90, seed=0, dtype=dtype), normal(6, 2 * 90, seed=1, size=size, dtype=dtype)
        g, u = (base.double() + change.double()).chunk(2, 1)
        own = change.clone()
        out = gated_product_in_lockstep_(*base.chunk(2, 1), *own.chunk(2, 1), silu=silu, backend=backend)
        assert out.policy is not None and out.reference is not None and out.difference is not None and out.rows is None
        assert error(own, torch.cat([g, u], 1)) <= ROUNDING, "the policy's gate and up lie over the differences"

        def product(g: Tensor, u: Tensor) -> Tensor:
            return (F.silu(g) if silu else F.gelu(g, approximate="tanh")) * u

        halves = PolicyAndReference(out.policy, out.reference, out.difference)
        return halves, product(*base.double().chunk(2, 1)), product(g, u)

    return part


PARTS = {"sum": summed, "norm": normed(0.0), "norm with 1 + w": normed(1.0), "SiLU": gated(True), "GELU": gated(False)}


@pytest.mark.parametrize("part", PARTS)
def test_float64_is_exact(part: str) -> None:
    halves, reference, policy = PARTS[part]("reference", torch.float64, 0.1)
    for got, exact in zip(halves, (policy, reference, policy - reference), strict=True):
        assert error(got, exact) <= 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e-4, 0.03])
@pytest.mark.parametrize("part", PARTS)
def test_in_16_bits_the_difference_is_as_exact_as_its_own_size_allows(part: str, size: float, backend: Any) -> None:
    halves, reference, policy = PARTS[part](backend, torch.bfloat16, size)
    assert error(halves.reference, reference) <= 2 * ROUNDING
    assert error(halves.policy, policy) <= 2 * ROUNDING
    assert error(halves.difference, policy - reference) <= 1.5 * ROUNDING
    if size < 0.001:
        assert error(halves.policy.double() - halves.reference.double(), policy - reference) > 0.3, "rounded halves"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", PARTS)
def test_no_difference_stays_none_bit_by_bit(part: str, backend: Any) -> None:
    halves, _, _ = PARTS[part](backend, torch.bfloat16, 0.0)
    assert not halves.difference.any()
    assert torch.equal(halves.policy, halves.reference)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", [E4M3_ROWS, rotated_int8(192)], ids=["e4m3", "int8"])
def test_rows_in_8_bits_are_those_of_the_results(form: RowForm, backend: Any) -> None:
    r, d, weight = normal(4, 192, seed=0), normal(4, 192, seed=1, size=0.01), normal(192, seed=2)
    halves, rows, _ = rms_norm_in_lockstep(r, d, weight, 1e-5, form=form, backend=backend)
    assert rows is not None
    both = normal(4, 384, seed=3), normal(4, 384, seed=4, size=0.01)
    made = []
    for given in (None, form):
        own = both[1].clone()
        made.append(gated_product_in_lockstep_(*both[0].chunk(2, 1), *own.chunk(2, 1), form=given, backend=backend))
    assert made[1].reference is None and made[1].difference is None and made[1].rows is not None
    assert torch.equal(made[0].policy, made[1].policy)  # type: ignore[arg-type]
    pairs = [(halves.reference, rows.reference), (halves.difference, rows.difference)]
    pairs += [(made[0].reference, made[1].rows.reference), (made[0].difference, made[1].rows.difference)]  # type: ignore[list-item]
    for exact, got in pairs:
        expected = quantize_rows(exact, form=form, backend="reference")
        assert torch.allclose(got.scale, expected.scale, rtol=1e-6)
        steps = (got.values.float() - expected.values.float()).abs()
        assert (steps > 0).float().mean() < 0.01, "a value in the middle may be rounded the other way"


def test_the_sum_has_the_gradients_of_both_policies() -> None:
    policies = [normal(3, 8, seed=i, dtype=torch.float64).requires_grad_() for i in (0, 1)]
    references = [p.detach() * 0.9 for p in policies]
    one, other = (PolicyAndReference(p, r, difference_of(p, r)) for p, r in zip(policies, references, strict=True))
    total = sum_with_graph(one, other)
    assert not total.reference.requires_grad and not total.difference.requires_grad
    assert torch.allclose(total.policy, policies[0] + policies[1], rtol=1e-15)
    weights = normal(3, 8, seed=2, dtype=torch.float64)
    for gradient in torch.autograd.grad((total.policy * weights).sum(), policies):
        assert torch.equal(gradient, weights)


def test_backends_are_named() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="not one of auto, reference, triton"):
        sum_in_lockstep(x, x, x, x, backend="cuda")  # type: ignore[arg-type]
