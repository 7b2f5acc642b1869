"""The short convolution of a packed row against the convolution of each sequence, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.prefix_attention import Document, PrefixLayout
from wishbone.ops.prefix_attention.tables import overwrite_tables, tables_hold
from wishbone.ops.prefix_convolution import prefix_convolution, prefix_convolution_reference

LAYOUT = PrefixLayout(
    (
        Document(0, 5, (9, 16)),
        Document(16, 17, (18, 30)),  # a stem of one token, a branch of one
        Document(30, 33),
        Document(33, 40, (40, 47)),  # an empty branch
        Document(47, 47, (52, 55)),  # an empty stem
        Document(55, 57, (58, 59, 60)),
    )
)
CHANNELS = 3


def inputs(taps: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(taps)
    shapes = (1, CHANNELS, LAYOUT.length), (CHANNELS, taps), (CHANNELS,)
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes)
    return x, weight, bias


def convolve(x: Tensor, weight: Tensor, bias: Tensor, activation: Callable[[Tensor], Tensor] | None = F.silu) -> Tensor:
    taps = weight.shape[1]
    found = F.conv1d(F.pad(x, (taps - 1, 0)), weight[:, None], bias, groups=CHANNELS)
    return found if activation is None else activation(found)


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    "layout", [LAYOUT, PrefixLayout((Document(0, 60),)), PrefixLayout((Document(0, 3, (30, 60)),))]
)
def test_values_and_gradients_are_those_of_each_sequence(layout: PrefixLayout, taps: int) -> None:
    leaves = inputs(taps)
    weights = torch.randn(1, CHANNELS, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for op in (prefix_convolution, prefix_convolution_reference):
        out = op(leaves[0], taps, layout, lambda x: convolve(x, *leaves[1:]))
        results.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape and (got - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.kernels
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("layout", [LAYOUT, PrefixLayout((Document(0, 3, (30, 60)),))])
def test_kernels_give_the_same(layout: PrefixLayout, taps: int, silu: bool) -> None:
    from wishbone.ops.prefix_convolution.triton import prefix_convolution_triton

    device = "cuda" if torch.cuda.is_available() else "cpu"
    leaves = inputs(taps)
    own = [leaf.detach().to(device, torch.float32).requires_grad_() for leaf in leaves]
    weights = torch.randn(1, CHANNELS, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = prefix_convolution_reference(
        leaves[0], taps, layout, lambda x: convolve(x, *leaves[1:], activation=F.silu if silu else None)
    )
    got = prefix_convolution_triton(own[0][0].T, own[1], own[2], layout, silu=silu).T[None]
    expected_all = [expected, *torch.autograd.grad((expected * weights).sum(), leaves)]
    got_all = [got, *torch.autograd.grad((got * weights.to(device, torch.float32)).sum(), own)]
    for one, other in zip(got_all, expected_all, strict=True):
        assert (one.cpu().double() - other).norm() <= 1e-6 * other.norm()


@pytest.mark.kernels
def test_tables_of_another_row_give_its_results_bit_by_bit() -> None:
    from wishbone.ops.prefix_convolution.triton import prefix_convolution_triton

    device = "cuda" if torch.cuda.is_available() else "cpu"
    own = [leaf.detach().to(device, torch.float32).requires_grad_() for leaf in inputs(4)]
    row, other = PrefixLayout((Document(0, 60),)), PrefixLayout((*LAYOUT.documents[:5], Document(55, 57, (58, 60))))
    recorded = row.with_room(6)

    def of(layout: PrefixLayout) -> list[Tensor]:
        out = prefix_convolution_triton(own[0][0].T, own[1], own[2], layout, silu=True)
        return [out, *torch.autograd.grad((out * own[0][0].T.detach().cos()).sum(), own)]

    first = of(recorded)
    assert all(map(torch.equal, first, of(row)))
    assert tables_hold(recorded, other) and not tables_hold(recorded, LAYOUT), "LAYOUT has three branches in one place"
    overwrite_tables(recorded, other)
    found = of(recorded)
    assert all(map(torch.equal, found, of(other))) and not torch.equal(found[0], first[0])


def test_the_reference_is_the_sum_over_the_inputs_of_each_sequence() -> None:
    x, weight, bias = (leaf.detach() for leaf in inputs(3))
    out = prefix_convolution_reference(x, 3, LAYOUT, lambda one: convolve(one, weight, bias))
    for document in LAYOUT.documents:
        for start, end in document.branches():
            sequence = [*range(document.start, document.stem_end), *range(start, end)]
            for at, token in enumerate(sequence):
                read = [(j, sequence[at - 2 + j]) for j in range(3) if at - 2 + j >= 0]
                total = bias + sum(weight[:, j] * x[0, :, one] for j, one in read)
                torch.testing.assert_close(out[0, :, token], F.silu(total), rtol=1e-12, atol=1e-12)


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="is not one row of 60 tokens"):
        prefix_convolution(torch.zeros(1, 2, 59), 3, LAYOUT, lambda x: x)
