"""What the Triton kernels of token_logps must do, on a GPU or in Triton's interpreter.

Errors are measured against the definition in float64 and held to those of the definition in the same dtype.
"""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from wishbone.ops.token_logps import TokenScores, token_logps

pytest.importorskip("triton")
import wishbone.ops.token_logps.triton as backend

pytestmark = pytest.mark.kernels
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPANIONS = ("entropy", "mean_logit", "log_sum_sq_probs")
HEADS = [(1.0, None, False, 37), (0.25, None, True, 128), (1.5, 4.0, True, 301), (1.0, 2.0, False, 127)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a vocabulary and several chunks a batch, at sizes that the interpreter can do."""
    monkeypatch.setattr(backend, "BLOCK", 64)
    monkeypatch.setattr(backend, "WARPS", 4)
    monkeypatch.setattr(backend, "ROWS", 4)


def inputs(tokens: int, hidden_size: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(tokens, hidden_size, generator=g, dtype=torch.float64)
    weight = torch.randn(vocabulary, hidden_size, generator=g, dtype=torch.float64)
    bias = torch.randn(vocabulary, generator=g, dtype=torch.float64)
    targets = torch.randint(vocabulary, (tokens,), generator=g)
    targets[0], targets[-1] = 0, vocabulary - 1
    return hidden, weight, bias, targets


def with_gradients(
    name: str,
    dtype: torch.dtype,
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor],
    trained: tuple[str, ...] = ("hidden",),
    **options: object,
) -> tuple[TokenScores, dict[str, Tensor]]:
    """Scores, and the gradients of their weighted sum, in float64 on the CPU."""
    hidden, weight, bias, targets = tensors
    device = "cpu" if name == "reference" else DEVICE
    leaves = {"hidden": hidden, "weight": weight, "bias": bias}
    leaves = {key: None if leaf is None else leaf.to(device, dtype) for key, leaf in leaves.items()}
    wanted = [leaves[key].requires_grad_() for key in trained]
    scores = token_logps(
        leaves["hidden"], leaves["weight"], targets.to(device), bias=leaves["bias"], backend=name, **options
    )
    coefficients = torch.linspace(-2, 3, len(targets), dtype=scores.logps.dtype, device=device)
    gradients = torch.autograd.grad((scores.logps * coefficients).sum(), wanted)
    double = TokenScores(*(getattr(scores, field.name).detach().cpu().double() for field in fields(scores)))
    return double, {key: g.cpu().double() for key, g in zip(trained, gradients, strict=True)}


def error(value: Tensor, exact: Tensor) -> float:
    assert value.isfinite().all()
    return float((value - exact).norm() / exact.norm())


def allowed(ordinary: float, dtype: torch.dtype) -> float:
    """Error of a gradient that may be made where plain torch makes `ordinary`; the interpreter cuts bfloat16 off."""
    cut_off = dtype == torch.bfloat16 and DEVICE == "cpu"
    return max((3.0 if cut_off else 1.5) * ordinary, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("scale", "cap", "biased", "vocabulary"), HEADS)
def test_scores_and_unit_gradient_are_those_of_the_definition(
    dtype: torch.dtype, scale: float, cap: float | None, biased: bool, vocabulary: int
) -> None:
    hidden, weight, bias, targets = inputs(7, 24, vocabulary)
    tensors = (hidden, weight, bias if biased else None, targets)
    options = {"logit_scale": scale, "softcap": cap}
    exact, exact_gradient = with_gradients("reference", torch.float64, tensors, **options)
    plain, plain_gradient = with_gradients("reference", dtype, tensors, **options)
    ours, gradient = with_gradients("triton", dtype, tensors, chunk_bytes=1, **options)
    for name in ("logps", *COMPANIONS):
        ordinary = error(getattr(plain, name), getattr(exact, name))
        assert error(getattr(ours, name), getattr(exact, name)) <= max(1.5 * ordinary, 1e-6), name
    assert torch.equal(ours.is_top1, plain.is_top1) or dtype != torch.float32
    ordinary = error(plain_gradient["hidden"], exact_gradient["hidden"])
    assert error(gradient["hidden"], exact_gradient["hidden"]) <= allowed(ordinary, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [("weight",), ("bias",), ("hidden", "weight", "bias")])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (1.5, 4.0)])
def test_gradients_of_a_trained_head_are_those_of_the_definition(
    dtype: torch.dtype, trained: tuple[str, ...], scale: float, cap: float | None
) -> None:
    tensors = inputs(7, 24, 150)
    options = {"logit_scale": scale, "softcap": cap}
    _, exact = with_gradients("reference", torch.float64, tensors, trained, **options)
    _, plain = with_gradients("reference", dtype, tensors, trained, **options)
    _, ours = with_gradients("triton", dtype, tensors, trained, chunk_bytes=1, **options)
    for name in trained:
        assert error(ours[name], exact[name]) <= allowed(error(plain[name], exact[name]), dtype), name


@pytest.mark.parametrize("order", ["rising", "falling", "one"])
def test_sums_follow_the_largest_logit(order: str) -> None:
    """Every block, no block but the first, or one block in the middle raises the maximum, by far more than e^88."""
    logits = torch.linspace(-3e3, 3e3, 200, dtype=torch.float64)
    if order == "falling":
        logits = logits.flip(0)
    if order == "one":
        logits = torch.zeros(200, dtype=torch.float64)
        logits[100] = 700
    targets = torch.tensor([0, 63, 64, 100, 199])
    tensors = (torch.ones(5, 1, dtype=torch.float64), logits[:, None], None, targets)
    exact, exact_gradient = with_gradients("reference", torch.float64, tensors)
    ours, gradient = with_gradients("triton", torch.float32, tensors)
    assert torch.allclose(ours.logps, exact.logps, rtol=3e-7, atol=1e-3)
    assert torch.allclose(ours.entropy, exact.entropy, atol=1e-5)
    assert torch.allclose(ours.log_sum_sq_probs, exact.log_sum_sq_probs, atol=1e-5)
    assert torch.equal(ours.is_top1, exact.is_top1)
    assert torch.allclose(gradient["hidden"], exact_gradient["hidden"], rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("cap", [None, 1.0])
def test_the_first_of_equal_logits_is_the_top_one(cap: float | None) -> None:
    """Equal logits in one block and in two; with a cap, different logits that the cap makes equal."""
    weight = torch.zeros(200, 1)
    weight[[5, 7, 150]] = torch.tensor([[200.0], [200.0], [200.0 if cap is None else 300.0]])
    targets = torch.tensor([5, 7, 150, 0])
    hidden = torch.ones(4, 1)
    scores = token_logps(hidden.to(DEVICE), weight.to(DEVICE), targets.to(DEVICE), softcap=cap, backend="triton")
    assert scores.is_top1.tolist() == [True, False, False, False]


@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 1), (1, 301), (4, 64), (5, 65), (8, 127)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_at_the_edges_of_blocks_and_chunks(tokens: int, vocabulary: int, dtype: torch.dtype) -> None:
    tensors = inputs(tokens, 8, vocabulary)
    rounded = tuple(t if t is tensors[3] else t.to(dtype).double() for t in tensors)
    exact, exact_gradient = with_gradients("reference", torch.float64, rounded)
    ours, gradient = with_gradients("triton", dtype, rounded, chunk_bytes=1)
    assert torch.allclose(ours.logps, exact.logps, atol=1e-5)
    assert torch.allclose(ours.entropy, exact.entropy, atol=1e-5)
    epsilon = torch.finfo(dtype).eps
    assert (gradient["hidden"] - exact_gradient["hidden"]).norm() <= 4 * epsilon * exact_gradient[
        "hidden"
    ].norm() + 1e-6


def test_no_tokens() -> None:
    hidden, weight, _, targets = (t.to(DEVICE) for t in inputs(3, 8, 37))
    hidden = hidden.to(torch.bfloat16)[:0].requires_grad_()
    for head in (weight.to(torch.bfloat16), weight.to(torch.bfloat16).requires_grad_()):
        scores = token_logps(hidden, head, targets[:0], backend="triton")
        assert scores.logps.shape == (0,) and scores.logps.dtype == torch.float32
        scores.logps.sum().backward()
    assert hidden.grad is not None and head.grad is not None and not head.grad.any()


@pytest.mark.parametrize("trained", [("hidden",), ("hidden", "weight")])
def test_what_nobody_asks_for_changes_nothing(trained: tuple[str, ...]) -> None:
    tensors = inputs(6, 8, 150)
    every, gradients = with_gradients("triton", torch.float32, tensors, trained)
    alone, same = with_gradients("triton", torch.float32, tensors, trained, statistics=False)
    assert torch.equal(alone.logps, every.logps)
    assert all(torch.equal(same[name], gradients[name]) for name in trained)
    assert all(getattr(alone, name).isnan().all() for name in COMPANIONS) and not alone.is_top1.any()


def test_without_gradient() -> None:
    hidden, weight, bias, targets = (
        t.to(DEVICE, t.dtype if t.dtype == torch.int64 else torch.float32) for t in inputs(6, 8, 150)
    )
    expected = token_logps(hidden, weight, targets, bias=bias, backend="triton").logps
    assert not expected.requires_grad
    with torch.no_grad():
        scores = token_logps(hidden.requires_grad_(), weight.requires_grad_(), targets, bias=bias, backend="triton")
    assert torch.equal(scores.logps, expected) and not scores.logps.requires_grad


def test_tensors_that_are_not_contiguous() -> None:
    hidden, weight, bias, targets = inputs(6, 8, 37)
    spread = (
        hidden.t().contiguous().t(),
        weight.t().contiguous().t(),
        bias.repeat_interleave(2)[::2],
        targets.repeat_interleave(2)[::2],
    )
    one, gradients = with_gradients("triton", torch.float32, (hidden, weight, bias, targets))
    other, same = with_gradients("triton", torch.float32, spread)
    assert torch.allclose(one.logps, other.logps, atol=1e-5)
    assert torch.allclose(gradients["hidden"], same["hidden"], atol=1e-5)


def test_a_target_outside_of_the_vocabulary_has_no_score() -> None:
    hidden, weight, _, _ = inputs(4, 8, 37)
    targets = torch.tensor([-1, 3, 37, 2**40])
    logps = token_logps(
        hidden.float().to(DEVICE), weight.float().to(DEVICE), targets.to(DEVICE), backend="triton"
    ).logps
    assert logps.isnan().tolist() == [True, False, True, True]


def test_float64_is_refused_by_name() -> None:
    hidden, weight, _, targets = inputs(4, 8, 37)
    with pytest.raises(ValueError, match="float64: the triton backend takes bfloat16"):
        token_logps(hidden, weight, targets, backend="triton")


def test_chunks_are_whole_tiles_within_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ROWS", 128)
    assert backend.chunk_tokens(2**30, 128_256) == 2048
    assert backend.chunk_tokens(2**29, 128_256) == 1024
    assert backend.chunk_tokens(2**30, 262_144) == 1024
    assert backend.chunk_tokens(1, 262_144) == 128
    for vocabulary in (50_257, 151_936):
        tokens = backend.chunk_tokens(2**30, vocabulary)
        assert tokens % 128 == 0 and 4 * tokens * vocabulary <= 2**30 < 4 * (tokens + 128) * (vocabulary + 127)


def test_coefficients_are_not_rounded_to_the_dtype_of_the_hidden_states() -> None:
    """One coefficient serves a whole sequence, so its rounding would not average out."""
    hidden, weight, _, targets = inputs(4, 8, 37)
    low = hidden.to(DEVICE, torch.bfloat16).requires_grad_()
    logps = token_logps(low, weight.to(DEVICE, torch.bfloat16), targets.to(DEVICE), backend="triton").logps
    (unit,) = torch.autograd.grad(logps.sum(), low, retain_graph=True)
    coefficient = 1 + 2**-9
    (scaled,) = torch.autograd.grad((logps * coefficient).sum(), low)
    assert torch.equal(scaled, (unit.float() * coefficient).to(torch.bfloat16))
    assert not math.isclose(float(torch.tensor(coefficient, dtype=torch.bfloat16)), coefficient)
