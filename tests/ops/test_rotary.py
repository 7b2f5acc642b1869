"""Rotary embedding: complex multiplication by hand, gradients, and the Triton kernel."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from wishbone.ops.rotary import Form, rotary


def inputs(
    dtype: torch.dtype = torch.float64,
    heads: tuple[int, int] = (4, 2),
    width: int = 8,
    turned: int = 8,
    batch: int = 2,
    tokens: int = 5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query and key as layers make them, tokens before heads in memory, and angles of positions 3, 4, ..."""
    g = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(batch, tokens, h, width, generator=g, dtype=torch.float64).to(dtype).transpose(1, 2) for h in heads
    )
    angle = torch.arange(3.0, 3.0 + tokens, dtype=torch.float64)[:, None] / 100 ** (
        torch.arange(turned // 2) * 2 / turned
    )
    angles = torch.cat((angle, angle), dim=-1)[None]
    return q, k, angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize("turned", [8, 4])
def test_pairs_are_complex_numbers_that_are_turned(turned: int) -> None:
    q, k, cos, sin = inputs(turned=turned)
    half = turned // 2
    turn = torch.complex(cos[0, :, :half], sin[0, :, :half])
    for x, y in zip((q, k), rotary(q, k, cos, sin), strict=True):
        expected = torch.complex(x[..., :half], x[..., half:turned]) * turn
        assert torch.allclose(y[..., :half], expected.real, rtol=1e-12)
        assert torch.allclose(y[..., half:turned], expected.imag, rtol=1e-12)
        assert torch.equal(y[..., turned:], x[..., turned:])


def pairs_of(x: Tensor, *, halves: bool) -> tuple[Tensor, ...]:
    return x.chunk(2, dim=-1) if halves else x.unflatten(-1, (-1, 2)).unbind(-1)


@pytest.mark.parametrize("turned", [8, 4])
@pytest.mark.parametrize("form", get_args(Form))
def test_families_lay_out_their_pairs_in_other_ways(form: Form, turned: int) -> None:
    q, k, cos, sin = inputs(turned=turned)
    half = turned // 2
    turn = torch.complex(cos[0, :, :half], sin[0, :, :half])
    if form == "neighbours with their angles":
        cos, sin = (x[..., :half].repeat_interleave(2, dim=-1) for x in (cos, sin))
    if form == "halves with one angle":
        cos, sin = cos[..., :half], sin[..., :half]
    for x, y in zip((q, k), rotary(q, k, cos, sin, form=form), strict=True):
        expected = torch.complex(*pairs_of(x[..., :turned], halves=form.startswith("halves"))) * turn
        got = pairs_of(y[..., :turned], halves="halves" in form)
        assert torch.allclose(got[0], expected.real, rtol=1e-12)
        assert torch.allclose(got[1], expected.imag, rtol=1e-12)
        assert torch.equal(y[..., turned:], x[..., turned:])


@pytest.mark.kernels
@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "width", "turned", "batch"),
    [((4, 2), 8, 8, 1), ((3, 1), 12, 6, 2), ((5, 5), 80, 32, 1), ((1, 1), 2, 2, 3), ((3, 0), 8, 4, 2)],
)
def test_the_kernel_is_the_reference(
    form: Form, dtype: torch.dtype, heads: tuple[int, int], width: int, turned: int, batch: int
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, cos, sin = (x.to(device) for x in inputs(dtype, heads, width, turned, batch, 3))
    sin = sin + torch.linspace(0, 1, turned, device=device, dtype=dtype)  # halves that differ
    if form == "halves with one angle":
        cos, sin = cos[..., : turned // 2], sin[..., : turned // 2]
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.detach().clone().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for x in (q, k)]
        outputs = rotary(*leaves, cos, sin, form=form, backend=backend)
        assert all(y.transpose(1, 2).is_contiguous() for y in outputs)
        loss = sum((y * torch.arange(y.numel(), device=device).sin().view(y.shape).to(dtype)).sum() for y in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=2 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="not one of auto"):
        rotary(*inputs(), backend="liger")  # type: ignore[arg-type]
