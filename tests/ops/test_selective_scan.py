"""Mamba's scan of a packed row in chunks against its definition, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wishbone.ops.prefix_attention import Document, PrefixLayout
from wishbone.ops.selective_scan import chunked, selective_scan, selective_scan_reference

LAYOUT = PrefixLayout(
    (
        Document(0, 35, (38, 39)),  # two chunks, then branches of three tokens and of one
        Document(39, 40, (43, 43, 45)),  # an empty branch between others
        Document(45, 48),
        Document(48, 48, (50, 53)),  # an empty stem
    )
)


def results(op: object, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    tokens, channels, states = LAYOUT.length, 5, 3
    leaves = [normal(1, tokens, channels), normal(1, tokens, channels).exp(), -normal(channels, states).exp()]
    leaves += [normal(1, tokens, states), normal(1, tokens, states), normal(channels)]
    weights = normal(1, tokens, channels)
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    out = op(*leaves, LAYOUT)  # type: ignore[operator]
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


@pytest.mark.parametrize("elements", [1, 1 << 26], ids=["channel by channel", "all at once"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_are_those_of_the_definition(
    dtype: torch.dtype, tolerance: float, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "MOST_ELEMENTS", elements)
    exact = results(selective_scan_reference, torch.float64)
    for got, expected in zip(results(selective_scan, dtype), exact, strict=True):
        assert got.shape == expected.shape and (got - expected).norm() <= tolerance * expected.norm()


def test_a_row_of_another_length_is_refused() -> None:
    x = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="is not one row of 53 tokens"):
        selective_scan(x, x, torch.zeros(3, 4), torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), None, LAYOUT)
