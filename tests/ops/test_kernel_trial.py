"""A kernel that is wrong, or that does not fit, gives way to PyTorch's form with one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wishbone.ops import chunked_scan, kernel_trial
from wishbone.ops.gated_delta_rule import chunked as delta_rule
from wishbone.ops.kernel_trial import kernel_is_right
from wishbone.ops.prefix_attention import Document, PrefixLayout
from wishbone.ops.state_space_scan import chunked as state_space

OutOfResources = pytest.importorskip("triton.runtime.errors").OutOfResources


def square(inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] * inputs[0]


class OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def no_room(_inputs: Sequence[Tensor]) -> Tensor:
    raise OutOfResources(3, 2, "shared memory")


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (square, None),
        (lambda x: 1.1 * square(x), "values or gradients differ by 1e-01"),
        (lambda x: OwnGradient.apply(x[0]), "values or gradients differ"),
        (no_room, "too little shared memory"),
    ],
)
def test_what_is_wrong_is_said_once(kernel: Any, said: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="wishbone"):
        found = {kernel_is_right("squares", kernel, kernel, square, lambda: [torch.arange(1.0, 5.0)]) for _ in range(2)}
    assert found == {said is None} and len(caplog.messages) == (said is not None)
    assert said is None or said in caplog.text


def test_kernels_of_a_trial_are_compiled_several_at_once_before_they_are_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    @contextmanager
    def handed_over() -> Iterator[None]:
        order.append("handed over")
        yield
        order.append("launched")

    def noted(name: str) -> Any:
        return lambda inputs: order.append(name) or square(inputs)

    monkeypatch.setattr(kernel_trial, "can_compile_ahead", lambda _device: True)
    monkeypatch.setattr(kernel_trial, "handed_over", handed_over)
    assert kernel_is_right("squares", object(), noted("kernel"), noted("reference"), lambda: [torch.ones(2)])
    assert order == ["handed over", "kernel", "launched", "reference", "kernel"]


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("scan", ["delta rule", "state space"])
def test_scans_pass_their_trial_and_run_by_kernels(scan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but for the device."""
    from wishbone.ops.chunked_scan import triton

    short = PrefixLayout((Document(0, 9, (13, 15)),))
    monkeypatch.setattr(triton, "CHUNK", 16)
    monkeypatch.setattr(chunked_scan, "TRIED_ROW", PrefixLayout((Document(0, 18, (20, 24)), Document(24, 26))))
    ran: list[object] = []
    own = triton.chunked_scan
    monkeypatch.setattr(triton, "chunked_scan", lambda *args: ran.append(args[5]) or own(*args))
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, short.length, *shape, generator=g)

    for module in (delta_rule, state_space):
        monkeypatch.setattr(module, "has_kernels", lambda query, value: True)
    if scan == "delta rule":
        inputs = normal(1, 16), normal(1, 16), normal(1, 16), -normal(1).exp(), normal(1).sigmoid()
        out = delta_rule.gated_delta_rule(*inputs, short, unit=True)
        exact = delta_rule._in_pytorch(inputs, short, unit=True)
    else:
        five = normal(1, 16), normal(1).exp(), -torch.ones(1), normal(1, 16), normal(1, 16)
        out = state_space.state_space_scan(*five, None, short)
        exact = state_space._in_pytorch(five, short)
    assert ran[0] is chunked_scan.TRIED_ROW and ran[-1] is short
    assert (out - exact).norm() <= 1e-5 * exact.norm()


def test_a_trial_within_a_recomputed_layer_leaves_its_tensors_alone():
    tried: list[bool] = []

    def layer(x: Tensor) -> Tensor:
        with torch.no_grad():
            tried.append(kernel_is_right("squares", "recomputed", square, square, lambda: [torch.ones(3, 2)]))
        return (x * x).sin()

    x = torch.randn(4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda _: pytest.fail("the trial's own tensor"), lambda kept: kept):
        assert kernel_is_right("squares", "hooked", square, square, lambda: [torch.ones(3, 2, requires_grad=True)])
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, (x * x).cos() * 2 * x)
    assert tried == [True, True]
