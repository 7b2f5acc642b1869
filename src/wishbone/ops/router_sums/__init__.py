"""Sums over layers and tokens of what routers chose and how probable they found each expert, by group of tokens.

    C_gi = sum_lt w_tg [i is chosen for t in l]        Q_gi = sum_lt w_tg p_lti,    p_lt = softmax(logits_lt)

From these sums the auxiliary loss of a group follows (`reference.py`), whatever rows its tokens lie in. Between forward
and backward pass only the logits are kept: probabilities, which are often larger, are computed again.

    dQ_g / dlogit_ltj = w_tg p_ltj (e_j - p_lt)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["router_sums"]


AT_A_TIME = 2**25
"""Logits whose probabilities are in memory at a time, unless one layer has more."""


def router_sums(logits: Tensor, weights: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return C and Q, added up over layers, [groups, experts] each, float64; only Q has gradients.

    As in transformers, probabilities have the dtype in which torch computes a softmax of `logits` (under autocast,
    float32), and the choice is theirs. Sums in float64 are the same for any rows and any precision of products.

    Args:
        logits: [layers, tokens, experts].
        weights: how often each token counts in each group, [tokens, groups], float64.
        top_k: experts that are chosen for a token.
    """
    chosen, probable = _RouterSums.apply(logits, weights, top_k)
    return chosen, probable


class _RouterSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, weights: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        sums = [torch.zeros(logits.shape[1:], dtype=torch.float64, device=logits.device) for _ in range(2)]
        for layers in _some(logits):
            probabilities = layers.softmax(-1)
            chosen = torch.zeros_like(probabilities).scatter_(2, probabilities.topk(top_k, dim=-1).indices, 1.0)
            for total, part in zip(sums, (chosen, probabilities), strict=True):
                total += part.sum(0, dtype=torch.float64)
            ctx.computed_in = probabilities.dtype
        ctx.save_for_backward(logits, weights)
        choices, probable = (weights.T @ torch.cat(sums, dim=1)).chunk(2, dim=1)
        ctx.mark_non_differentiable(choices)
        return choices, probable

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, weights = ctx.saved_tensors
        precise = torch.promote_types(ctx.computed_in, torch.float32)
        by_probability = (weights @ gradient.double()).to(precise)
        found = torch.empty_like(logits)
        for layers, out in zip(_some(logits), _some(found), strict=True):
            probabilities = layers.softmax(-1, dtype=ctx.computed_in).to(precise)
            inner = (by_probability * probabilities).sum(-1, keepdim=True)
            out.copy_(probabilities * (by_probability - inner))
        return found, None, None


def _some(logits: Tensor) -> tuple[Tensor, ...]:
    """Return a few layers of [layers, tokens, experts] at a time."""
    parts: tuple[Tensor, ...] = logits.split(max(1, AT_A_TIME // max(1, logits[0].numel())))
    return parts
