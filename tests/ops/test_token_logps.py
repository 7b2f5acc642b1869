"""Log-probabilities of tokens against float64 textbook formulas, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wishbone.ops.token_logps import chunked, token_logps

TOKENS, HIDDEN, VOCABULARY = 23, 12, 37


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, HIDDEN, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=g, dtype=torch.float64).to(dtype)
    bias = torch.randn(VOCABULARY, generator=g, dtype=torch.float64).to(dtype)
    return hidden, weight, bias, torch.randint(VOCABULARY, (TOKENS,), generator=g)


def textbook(h: Tensor, w: Tensor, b: Tensor | None, target: int, scale: float, cap: float | None) -> dict[str, float]:
    """One token in plain Python."""
    z = [float((row * h).sum() + (0 if b is None else b[v])) * scale for v, row in enumerate(w)]
    z = z if cap is None else [cap * math.tanh(value / cap) for value in z]
    total = sum(math.exp(value) for value in z)
    p = [math.exp(value) / total for value in z]
    return {
        "logps": math.log(p[target]),
        "entropy": -sum(x * math.log(x) for x in p),
        "mean_logit": sum(z) / len(z),
        "is_top1": float(max(range(len(z)), key=z.__getitem__) == target),
        "log_sum_sq_probs": math.log(sum(x * x for x in p)),
    }


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize(("scale", "cap", "with_bias"), [(1.0, None, False), (0.25, None, True), (1.5, 4.0, True)])
def test_values_are_the_textbooks(backend: str, scale: float, cap: float | None, with_bias: bool) -> None:
    hidden, weight, bias, targets = inputs()
    used = bias if with_bias else None
    scores = token_logps(hidden, weight, targets, bias=used, logit_scale=scale, softcap=cap, backend=backend)
    for i in range(TOKENS):
        for name, expected in textbook(hidden[i], weight, used, int(targets[i]), scale, cap).items():
            assert float(getattr(scores, name)[i]) == pytest.approx(expected, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("trained", [(), ("weight",), ("weight", "bias"), ("bias",)])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (1.5, 4.0)])
@pytest.mark.parametrize("chunk", [1, 7, 23, 100])
def test_gradients_are_those_of_the_definition(
    trained: tuple[str, ...], scale: float, cap: float | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "LEAST_TOKENS", 1)
    hidden, weight, bias, targets = inputs()
    coefficients = torch.linspace(-2, 3, TOKENS, dtype=torch.float64)
    leaves = [hidden, *({"weight": weight, "bias": bias}[name] for name in trained)]
    for leaf in leaves:
        leaf.requires_grad_()
    kwargs = {"bias": bias, "logit_scale": scale, "softcap": cap}
    logps = token_logps(hidden, weight, targets, chunk_bytes=4 * chunk * len(weight), backend="chunked", **kwargs).logps
    definition = token_logps(hidden, weight, targets, backend="reference", **kwargs).logps
    got = torch.autograd.grad((logps * coefficients).sum(), leaves)
    expected = torch.autograd.grad((definition * coefficients).sum(), leaves)
    for value, wanted in zip(got, expected, strict=True):
        assert (value - wanted).norm() <= 1e-9 * wanted.norm()


def test_a_chunk_that_is_asked_for_is_never_larger_than_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, targets = inputs()
    sizes: list[int] = []
    own = chunked._PlainHead._logits
    monkeypatch.setattr(chunked, "LEAST_TOKENS", 1)
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 4 * 7 * len(weight))
    monkeypatch.setattr(
        chunked._PlainHead, "_logits", lambda self, x, *more: sizes.append(len(x)) or own(self, x, *more)
    )
    for asked in (10**9, 4 * 3 * len(weight)):
        token_logps(hidden, weight, targets, chunk_bytes=asked, backend="chunked")
    assert sizes[0] == 7 and sizes[-(-TOKENS // 7)] == 3


def test_frozen_hidden_states_and_no_gradients() -> None:
    hidden, weight, _, targets = inputs()
    assert not token_logps(hidden, weight, targets).logps.requires_grad
    with torch.no_grad():
        scores = token_logps(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert not scores.logps.requires_grad


def test_large_logits_stay_finite() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    hidden = (hidden * 1e4).requires_grad_()
    scores = token_logps(hidden, weight, targets)
    scores.logps.sum().backward()
    assert scores.logps.isfinite().all() and scores.entropy.isfinite().all()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_no_tokens() -> None:
    hidden, weight, _, targets = inputs(torch.bfloat16)
    scores = token_logps(hidden[:0].requires_grad_(), weight, targets[:0])
    assert scores.logps.shape == (0,) and scores.logps.dtype == torch.float32
    scores.logps.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_loses_no_more_than_plain_torch(dtype: torch.dtype) -> None:
    hidden, weight, _, targets = inputs()
    exact = torch.log_softmax(hidden @ weight.t(), -1).gather(1, targets[:, None])[:, 0]
    low = (hidden.to(dtype), weight.to(dtype))
    ordinary = torch.log_softmax((low[0] @ low[1].t()).float(), -1).gather(1, targets[:, None])[:, 0]
    ours = token_logps(*low, targets).logps
    assert (ours.double() - exact).norm() <= 1.05 * (ordinary.double() - exact).norm()
