"""The inputs of a loss: scores of preference pairs, and hyperparameters.

A loss never sees tokens or a model. For the completions y_w (chosen) and y_l (rejected) of a prompt x it sees
log pi(y|x) = sum_t log pi(y_t | x, y_<t) of the policy, the same of the reference, and how many tokens were summed.
Two methods change the sums instead of the loss, so they are here: LD-DPO weights the tokens of the longer completion's
tail, WPO weights whole pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Log-probabilities and lengths of a group of pairs.

    Every tensor has shape [pairs], one dtype of float32 or float64, and one device. The policy's log-probabilities
    (`chosen_logps`, `rejected_logps`, `chosen_plain_logps`, `rejected_plain_logps`) may require gradients. A *scored*
    token is one whose log-probability was summed: every completion token, except the first one of an empty prompt.

    Attributes:
        chosen_logps: log pi(y_w|x), summed over scored tokens with the weights of LD-DPO if it is on (`ld_weights`).
        rejected_logps: log pi(y_l|x), the same.
        chosen_plain_logps: log pi(y_w|x), never weighted. The same tensor as `chosen_logps` without LD-DPO.
        rejected_plain_logps: log pi(y_l|x), never weighted.
        ref_chosen_logps: log pi_ref(y_w|x), weighted like `chosen_logps`; None if there is no reference.
        ref_rejected_logps: log pi_ref(y_l|x), weighted like `rejected_logps`; None if there is no reference.
        chosen_lengths: completion tokens of y_w, the first one included.
        rejected_lengths: completion tokens of y_l, the first one included.
        chosen_scored: scored tokens of y_w.
        rejected_scored: scored tokens of y_l.
        mean_chosen_scored: mean of `chosen_scored` over the whole batch of the pair. With it, token means over a batch
            (`sft`, `cpo`) become means over pairs, so a batch can be computed in parts.
        weights: WPO weight of each pair (`wpo_weight`), detached; None for no weighting.

    Raises:
        ValueError: a tensor of another shape or dtype, or only one of the two reference tensors.
    """

    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_plain_logps: Tensor
    rejected_plain_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    chosen_scored: Tensor
    rejected_scored: Tensor
    mean_chosen_scored: Tensor
    ref_chosen_logps: Tensor | None = None
    ref_rejected_logps: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        expected = (self.chosen_logps.shape, self.chosen_logps.dtype)
        if len(expected[0]) != 1 or expected[1] not in (torch.float32, torch.float64):
            raise ValueError(f"chosen_logps must be [pairs] of float32 or float64, not {expected[0]} of {expected[1]}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and (value.shape, value.dtype) != expected:
                raise ValueError(
                    f"{field.name} is {tuple(value.shape)} of {value.dtype}, "
                    f"chosen_logps is {tuple(expected[0])} of {expected[1]}: they must agree"
                )
        if (self.ref_chosen_logps is None) != (self.ref_rejected_logps is None):
            raise ValueError("ref_chosen_logps and ref_rejected_logps must both be given or both be None")

    @property
    def has_reference(self) -> bool:
        """Whether there are log-probabilities of the reference."""
        return self.ref_chosen_logps is not None

    @property
    def chosen_logratios(self) -> Tensor:
        """log pi(y_w|x) / pi_ref(y_w|x), [pairs].

        Raises:
            ValueError: there is no reference.
        """
        return _logratios(self.chosen_logps, self.ref_chosen_logps)

    @property
    def rejected_logratios(self) -> Tensor:
        """log pi(y_l|x) / pi_ref(y_l|x), [pairs].

        Raises:
            ValueError: there is no reference.
        """
        return _logratios(self.rejected_logps, self.ref_rejected_logps)


def _logratios(logps: Tensor, ref_logps: Tensor | None) -> Tensor:
    if ref_logps is None:
        raise ValueError("these scores have no reference log-probabilities")
    return logps - ref_logps


@dataclass(frozen=True, kw_only=True)
class LossParameters:
    """Hyperparameters of the losses; each loss reads the few that its equation names.

    Attributes:
        beta: scale of the implicit reward beta * log(pi / pi_ref); for `ipo` and `sppo_hard` the regularizer.
        label_smoothing: epsilon, the assumed rate of swapped labels (`robust`, `exo_pair`, `aot`, `aot_unpaired` only).
        f_divergence: reverse_kl, forward_kl, js_divergence or alpha_divergence.
        f_alpha: alpha of the alpha divergence.
        discopop_tau: temperature that blends the two parts of `discopop`.
        simpo_gamma: target margin of `simpo`, in units of reward.
        dpop_lambda: weight of the penalty of `dpop`.
        rdpo_alpha: price of a completion token in `rdpo`, in units of reward.
        cpo_alpha: weight of the negative log-likelihood in `cpo`.
        orpo_lambda: weight of the odds ratio term in `orpo`.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    f_divergence: str = "reverse_kl"
    f_alpha: float = 0.5
    discopop_tau: float = 0.05
    simpo_gamma: float = 0.5
    dpop_lambda: float = 50.0
    rdpo_alpha: float = 0.01
    cpo_alpha: float = 1.0
    orpo_lambda: float = 0.1


def ld_weights(positions: Tensor, other_scored: Tensor, alpha: float, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight of each scored token in log pi(y|x): 1 up to the sibling's length, alpha beyond (LD-DPO, 2409.06411).

        log pi_LD(y) = sum_{t < l} log pi(y_t) + alpha sum_{t >= l} log pi(y_t),    l = min(|y_w|, |y_l|)

    so that a completion earns less reward by being longer. alpha = 1 is plain DPO; alpha = 0 ignores the tail. Only the
    sibling's length is needed: a token's index is below its own length anyway.

    Args:
        positions: index of each token among the scored tokens of its own completion, from 0; any shape, integer.
        other_scored: scored tokens of the other completion of the token's pair, broadcastable to `positions`.
        alpha: weight of the tail, from 0 to 1.
        dtype: dtype of the weights.

    Returns:
        Weights, shape of `positions`.
    """
    return torch.ones(positions.shape, dtype=dtype, device=positions.device).masked_fill(
        positions >= other_scored, alpha
    )


def wpo_weight(mean_aligned_logp_chosen: Tensor, mean_aligned_logp_rejected: Tensor) -> Tensor:
    """Weight of a pair by how likely the policy would write both completions itself (WPO, 2406.11827, eq. 2).

        w(y) = exp( 1/|y| sum_t [ log pi(y_t) - log sum_v pi(v)^2 ] ),    weight = w(y_w) w(y_l)

    The bracket compares a token with a token drawn from the policy, so text of the policy has a weight of about 1.

    Args:
        mean_aligned_logp_chosen: mean over scored tokens of the bracket for y_w, [pairs].
        mean_aligned_logp_rejected: the same for y_l, [pairs].

    Returns:
        Weights, [pairs], detached.
    """
    return torch.exp(mean_aligned_logp_chosen + mean_aligned_logp_rejected).detach()
