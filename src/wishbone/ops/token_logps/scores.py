"""What is computed for each predicted token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenScores:
    """One value for each scored token, [tokens], float32 (float64 for float64 models). Only `logps` has a gradient.

    Attributes:
        logps: log p(target).
        entropy: -sum_v p_v log p_v, in nats.
        mean_logit: mean over the vocabulary.
        is_top1: bool, whether the target has the largest logit (the first one where several tie).
        log_sum_sq_probs: log sum_v p_v^2, the normalizer of WPO (arXiv 2406.11827).
    """

    logps: Tensor
    entropy: Tensor
    mean_logit: Tensor
    is_top1: Tensor
    log_sum_sq_probs: Tensor

    @classmethod
    def logps_alone(cls, logps: Tensor) -> TokenScores:
        """Return scores with `logps` only: NaN in the other fields, False in `is_top1`."""
        unknown = torch.full_like(logps, float("nan"), requires_grad=False)
        return cls(logps, unknown, unknown, torch.zeros_like(logps, dtype=torch.bool), unknown)


@dataclass(frozen=True)
class ReferenceStates:
    """The reference's hidden states, and what the policy's differ by, where that is carried (`carried_difference`).

    Logits of the policy are then W h_ref + W d, in float32, so that log pi - log pi_ref is that of d.

    Attributes:
        hidden: h_ref [tokens, hidden_size].
        difference: d [tokens, hidden_size], of the same dtype.
        logps: log p(target) of the reference [tokens], written; float32 (float64 for float64).
    """

    hidden: Tensor
    difference: Tensor
    logps: Tensor

    @classmethod
    def of(cls, hidden: Tensor, difference: Tensor) -> ReferenceStates:
        """Return states whose `logps` are to be written."""
        precise = torch.promote_types(hidden.dtype, torch.float32)
        return cls(hidden, difference, torch.empty(hidden.shape[0], dtype=precise, device=hidden.device))
