"""Mamba-2's scan of a packed row in chunks against its definition, values and gradients."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from wishbone.ops import scan_kernels
from wishbone.ops.prefix_attention import Document, PrefixLayout
from wishbone.ops.scan_kernels import why_no_kernels
from wishbone.ops.state_space_scan import state_space_scan, state_space_scan_reference

LAYOUT = PrefixLayout(
    (
        Document(0, 70, (75, 76)),
        Document(76, 77, (145, 150)),
        Document(150, 155),
        Document(155, 160, (160, 166)),
        Document(166, 166, (170, 175)),
    )
)


def inputs(groups: int, skip: bool, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(groups)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tokens = LAYOUT.length
    x, write, read = (normal(1, tokens, *shape) for shape in ((4, 3), (groups, 5), (groups, 5)))
    leaves = x, normal(1, tokens, 4).sigmoid(), -normal(4).exp(), write, read, normal(4) if skip else None
    return [None if leaf is None else leaf.to(dtype).requires_grad_() for leaf in leaves]


def results(op: object, leaves: list[Tensor | None]) -> list[Tensor]:
    out = op(*leaves, LAYOUT)  # type: ignore[operator]
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad((out * weights).sum(), [leaf for leaf in leaves if leaf is not None])]


@pytest.mark.parametrize(("groups", "skip"), [(1, True), (2, False), (4, True)])
def test_values_and_gradients_are_those_of_the_definition(groups: int, skip: bool) -> None:
    leaves = inputs(groups, skip)
    ours, reference = (results(op, leaves) for op in (state_space_scan, state_space_scan_reference))
    for got, expected in zip(ours, reference, strict=True):
        assert got.shape == expected.shape and (got - expected).norm() <= 1e-10 * expected.norm()


def test_float32_loses_what_sums_of_64_decays_lose() -> None:
    exact = results(state_space_scan_reference, inputs(2, True))
    for value, got in zip(exact, results(state_space_scan, inputs(2, True, torch.float32)), strict=True):
        assert got.dtype == torch.float32 and (got - value).norm() <= 1e-5 * value.norm()


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="is not one row of 60 tokens"):
        state_space_scan(*inputs(2, True), PrefixLayout((Document(0, 60),)))


def test_two_batches_of_the_familys_own_function_give_the_same() -> None:
    """Kernels of libraries are called in the same way as transformers' own function, which computes in float32."""
    from transformers.models.bamba.modeling_bamba import mamba2_chunk_scan

    from wishbone.fused.token_mixers import state_space_in_batches

    leaves = inputs(2, True, torch.float32)
    ours = results(lambda *x: state_space_in_batches(mamba2_chunk_scan, x[-1], *x[:-1], 8), leaves)
    for got, expected in zip(ours, results(state_space_scan, leaves), strict=True):
        assert (got - expected).norm() <= 2e-5 * expected.norm()


@pytest.mark.parametrize(("triton", "refused"), [("3.3.1", False), ("3.4.0", True), ("3.7.0", True), ("3.7.1", False)])
def test_what_flash_linear_attention_refuses_is_said_with_the_remedy(triton: str, refused: bool) -> None:
    reason = scan_kernels._wrong_on_hopper(Version(triton))
    assert (reason is not None and "install Triton 3.7.1" in reason and triton in reason) == refused
    assert why_no_kernels("mamba_ssm", torch.device("cpu")) == "there is no CUDA GPU"
