"""Scores f'(t) against the derivative of each divergence's generator f, and their limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from wishbone.preference.divergence import DIVERGENCES, divergence_score

ALPHA = 0.3
GENERATORS: dict[str, Callable[[float], float]] = {
    "reverse_kl": lambda t: t * math.log(t) - t,
    "forward_kl": lambda t: t - math.log(t),
    "js_divergence": lambda t: t * math.log(t) - (t + 1) * math.log((t + 1) / 2),
    "alpha_divergence": lambda t: (t**ALPHA / ALPHA - t) / (ALPHA - 1),
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("t", [0.05, 0.7, 1.0, 1.9, 30.0])
def test_score_is_the_derivative_of_the_generator(divergence: str, t: float) -> None:
    step = 1e-4 * t
    slope = (GENERATORS[divergence](t + step) - GENERATORS[divergence](t - step)) / (2 * step)
    score = divergence_score(torch.tensor(math.log(t), dtype=torch.float64), divergence, ALPHA)
    assert score.item() == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_agreement_scores_zero(divergence: str, dtype: torch.dtype) -> None:
    score = divergence_score(torch.zeros(3, dtype=dtype), divergence, ALPHA)
    assert score.dtype == dtype
    assert score.abs().max().item() < torch.finfo(dtype).eps


def test_alpha_divergence_runs_from_forward_to_reverse_kl() -> None:
    logratios = torch.linspace(-3, 3, 13, dtype=torch.float64)
    forward = divergence_score(logratios, "forward_kl", ALPHA)
    assert torch.equal(divergence_score(logratios, "alpha_divergence", 0.0), forward)
    assert torch.equal(divergence_score(logratios, "alpha_divergence", 1.0), logratios)
    nearly = divergence_score(logratios, "alpha_divergence", 1 + 1e-5)
    torch.testing.assert_close(nearly, logratios, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0])
def test_huge_log_ratios_stay_finite_and_ordered(divergence: str, alpha: float, dtype: torch.dtype) -> None:
    logratios = torch.tensor([-2000.0, -500.0, -1.0, 1.0, 500.0, 2000.0], dtype=dtype, requires_grad=True)
    scores = divergence_score(logratios, divergence, alpha)
    assert torch.isfinite(scores).all()
    assert (scores.diff() >= 0).all()
    (gradient,) = torch.autograd.grad(scores.sum(), logratios)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(scores[0] - scores[-1])


def test_limits() -> None:
    far = torch.tensor([-500.0, 500.0], dtype=torch.float64)
    assert divergence_score(far, "forward_kl", ALPHA).tolist() == pytest.approx([-math.exp(500), 1.0])
    assert divergence_score(far, "js_divergence", ALPHA).tolist() == pytest.approx([math.log(2) - 500, math.log(2)])


def test_unknown_divergence_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown divergence 'kl'"):
        divergence_score(torch.zeros(1), "kl", ALPHA)
