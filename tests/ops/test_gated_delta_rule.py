"""The gated delta rule of a packed row in chunks against its definition, values and gradients."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from wishbone.ops.gated_delta_rule import gated_delta_rule, gated_delta_rule_reference
from wishbone.ops.prefix_attention import Document, PrefixLayout

LAYOUT = PrefixLayout(
    (
        Document(0, 70, (75, 76)),  # two chunks, then branches of five tokens and of one
        Document(76, 77, (145, 150)),
        Document(150, 155),
        Document(155, 160, (160, 166)),  # an empty branch
        Document(166, 166, (170, 175)),  # an empty stem
    )
)


def inputs(
    heads: int, dtype: torch.dtype = torch.float64, layout: PrefixLayout = LAYOUT, decays: tuple[int, ...] = ()
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(heads)

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, layout.length, *shape, generator=generator, dtype=torch.float64)

    query, key, value = normal(2, 4), normal(2, 4), normal(heads, 3)
    leaves = query, key, value, -normal(heads, *decays).exp(), normal(heads).sigmoid()
    return [leaf.to(dtype).requires_grad_() for leaf in leaves]


def results(op: object, leaves: list[Tensor], layout: PrefixLayout = LAYOUT, unit: bool = True) -> list[Tensor]:
    out = op(*leaves, layout, unit=unit)  # type: ignore[operator]
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


@pytest.mark.parametrize("decays", [(), (4,)], ids=["a head", "an element"])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.slow
def test_values_and_gradients_are_those_of_the_definition(heads: int, decays: tuple[int, ...]) -> None:
    leaves = inputs(heads, decays=decays)
    for got, expected in zip(
        results(gated_delta_rule, leaves), results(gated_delta_rule_reference, leaves), strict=True
    ):
        assert got.shape == expected.shape and (got - expected).norm() <= 1e-10 * expected.norm()


def test_float32_loses_what_sums_of_64_decays_lose() -> None:
    exact = results(gated_delta_rule_reference, inputs(2))
    for value, got in zip(exact, results(gated_delta_rule, inputs(2, torch.float32)), strict=True):
        assert got.dtype == torch.float32 and (got - value).norm() <= 1e-5 * value.norm()


def test_keys_that_are_all_alike_do_not_blow_up() -> None:
    """The powers of the matrix that is inverted grow beyond float32, its inverse does not."""
    layout = PrefixLayout((Document(0, 64),))
    leaves = inputs(2, torch.float32, layout)
    with torch.no_grad():
        leaves[1].fill_(1.0)
        leaves[3].zero_()
        leaves[4].fill_(1.0)
    exact = gated_delta_rule_reference(*(leaf.double() for leaf in leaves), layout, unit=True)
    assert (gated_delta_rule(*leaves, layout, unit=True) - exact).norm() <= 1e-4 * exact.norm()


def test_bfloat16_and_autocast_are_computed_in_float32() -> None:
    leaves = [leaf.detach().bfloat16() for leaf in inputs(2)]
    exact = gated_delta_rule_reference(*(leaf.double() for leaf in leaves), LAYOUT, unit=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gated_delta_rule(*leaves, LAYOUT, unit=True)
    assert got.dtype == torch.bfloat16 and (got.double() - exact).norm() <= 3e-3 * exact.norm()


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="is not one row of 60 tokens"):
        gated_delta_rule(*inputs(2), PrefixLayout((Document(0, 60),)), unit=True)


@pytest.mark.parametrize(
    "layout", [LAYOUT, PrefixLayout((Document(0, 0, (90, 175)),)), PrefixLayout((Document(0, 175),))]
)
def test_two_batches_of_the_familys_own_function_give_the_same(layout: PrefixLayout) -> None:
    """Kernels of libraries are called in the same way as transformers' own function, which computes in float32."""
    from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

    from wishbone.fused.token_mixers import delta_rule_in_batches

    leaves = inputs(4, torch.float32, layout)

    def own(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        """In transformers 5.17 the layer repeats heads before it calls the function."""
        times = value.shape[2] // query.shape[2]
        repeated = (x.repeat_interleave(times, 2) for x in (query, key))
        return torch_chunk_gated_delta_rule(*repeated, value, **options)

    batches = functools.partial(delta_rule_in_batches, own, layout)
    ours = results(lambda *x, unit: batches(*x[:-1], unit), leaves, layout)
    for got, expected in zip(ours, results(gated_delta_rule, leaves, layout), strict=True):
        assert (got - expected).norm() <= 2e-5 * expected.norm()
