"""f-divergences: the penalty that keeps the policy near the reference (f-DPO, arXiv 2309.16240).

The policy that maximizes E[r] - beta D_f(pi || pi_ref) satisfies, up to a constant of the prompt,

    r(x, y) = beta f'( pi(y|x) / pi_ref(y|x) )

so a divergence enters a loss only as the score f'(t) of a completion, t = pi / pi_ref. Plain DPO is the reverse KL,
f'(t) = log t. The constant cancels only in a difference of two scores, so other losses allow only the reverse KL.

    reverse_kl          f'(t) = log t                               unbounded, mode seeking
    forward_kl          f'(t) = 1 - 1/t                             bounded above: little reward for leaving pi_ref
    js_divergence       f'(t) = log(2t / (t + 1))                   bounded above by log 2
    alpha_divergence    f'(t) = (t^(alpha-1) - 1) / (alpha - 1)     alpha = 0: forward KL, alpha -> 1: reverse KL
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")

_EXPONENT_LIMIT = {torch.float32: 80.0, torch.float64: 700.0}
"""Largest exponent used: differences and small multiples of its exponential are still finite in the dtype."""


def divergence_score(logratios: Tensor, divergence: str, alpha: float) -> Tensor:
    """Score f'(t) of completions from log t; zero where policy and reference agree.

    Args:
        logratios: log pi(y|x) / pi_ref(y|x), any shape, float32 or float64.
        divergence: one of `DIVERGENCES`.
        alpha: order of the alpha divergence; the others ignore it.

    Returns:
        Scores, same shape and dtype. Finite for any finite argument: the exponential of `forward_kl` and
        `alpha_divergence` stops growing (gradient 0) at exponent 80 in float32, 700 in float64.

    Raises:
        ValueError: unknown divergence.
    """
    match divergence:
        case "reverse_kl":
            return logratios
        case "forward_kl":
            return _power_score(logratios, 0.0)
        case "js_divergence":
            return math.log(2) + F.logsigmoid(logratios)
        case "alpha_divergence":
            return _power_score(logratios, alpha)
    raise ValueError(f"unknown divergence {divergence!r}: must be one of {', '.join(DIVERGENCES)}")


def _power_score(logratios: Tensor, alpha: float) -> Tensor:
    order = alpha - 1.0
    if abs(order) < 1e-6:
        return logratios
    exponent = torch.clamp(order * logratios, max=_EXPONENT_LIMIT[logratios.dtype])
    return torch.expm1(exponent) / order
