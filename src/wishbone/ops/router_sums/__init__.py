"""Sums over tokens of what a router chose and how probable it found each expert, by group of tokens.

    C_gi = sum_t w_tg [i is chosen for t]        Q_gi = sum_t w_tg p_ti,    p_t = softmax(logits_t)

From these sums the auxiliary loss of a group follows (`reference.py`), whatever rows its tokens lie in. Between forward
and backward pass only the logits are kept: probabilities, which are often larger, are computed again.

    dQ_g / dlogit_tj = w_tg p_tj (e_j - p_t)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["router_sums"]


def router_sums(logits: Tensor, weights: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return C and Q of one layer, [groups, experts] each, float64; only Q has gradients.

    As in transformers, probabilities have the dtype in which torch computes a softmax of `logits` (under autocast,
    float32), and the choice is theirs. Sums in float64 are the same for any rows and any precision of products.

    Args:
        logits: [tokens, experts].
        weights: how often each token counts in each group, [tokens, groups], float64.
        top_k: experts that are chosen for a token.
    """
    chosen, probable = _RouterSums.apply(logits, weights, top_k)
    return chosen, probable


class _RouterSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, weights: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        probabilities = logits.softmax(-1)
        chosen = torch.zeros_like(probabilities).scatter_(1, probabilities.topk(top_k, dim=-1).indices, 1.0)
        ctx.save_for_backward(logits, weights)
        ctx.computed_in = probabilities.dtype
        sums = weights.T @ torch.cat([chosen, probabilities], dim=1).double()
        choices, probable = sums.chunk(2, dim=1)
        ctx.mark_non_differentiable(choices)
        return choices, probable

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, weights = ctx.saved_tensors
        probabilities = logits.softmax(-1, dtype=ctx.computed_in)
        probabilities = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
        by_probability = (weights @ gradient.double()).to(probabilities.dtype)
        inner = (by_probability * probabilities).sum(-1, keepdim=True)
        return (probabilities * (by_probability - inner)).to(logits.dtype), None, None
