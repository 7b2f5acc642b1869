"""Losses of the policy alone, which need no reference.

Every function maps `PairScores` to a loss per pair, [pairs]. In the equations l_w, l_l are log pi(y|x), plain sums over
scored tokens, and |y| is the number of scored tokens. These losses treat length in their own way, so the token weights
of LD-DPO do not enter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.preference.scores import LossParameters, PairScores


def _mean_logps(scores: PairScores) -> tuple[Tensor, Tensor]:
    return (
        scores.chosen_plain_logps / scores.chosen_scored.clamp(min=1),
        scores.rejected_plain_logps / scores.rejected_scored.clamp(min=1),
    )


def _log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logps) <= 1; a p that rounds to 1 counts as one rounding step below 1."""
    logps = torch.clamp(logps, max=-torch.finfo(logps.dtype).eps)
    return logps - torch.log(-torch.expm1(logps))


def sft(scores: PairScores, hp: LossParameters) -> Tensor:
    """Negative log-likelihood of the chosen completion; added to a loss that only compares, it keeps it likely.

        -l_w / n,    n = mean |y_w| over the whole batch

    The mean over pairs is the mean over all chosen tokens of the batch: each token weighs the same, as in supervised
    fine-tuning. 0 for a batch without scored tokens. One of the three terms of MPO, arXiv 2411.10442.
    """
    return -scores.chosen_plain_logps / scores.mean_chosen_scored.clamp(
        min=torch.finfo(scores.mean_chosen_scored.dtype).tiny
    )


def simpo(scores: PairScores, hp: LossParameters) -> Tensor:
    """The mean log-probability per token is the reward, as in decoding, and the margin has a target; beta is 2 to 10.

        -log sigma(beta l_w / |y_w| - beta l_l / |y_l| - gamma)

    SimPO, arXiv 2405.14734, eq. 6.
    """
    chosen, rejected = _mean_logps(scores)
    return -F.logsigmoid(hp.beta * (chosen - rejected) - hp.simpo_gamma)


def cpo(scores: PairScores, hp: LossParameters) -> Tensor:
    """DPO against a uniform reference, kept near the data by the likelihood of the chosen completion.

        -log sigma(beta (l_w - l_l)) + alpha (-l_w / n),    n = mean |y_w| over the whole batch

    CPO, arXiv 2401.08417, eq. 3 to 5. The paper writes the likelihood per sequence; its code and TRL's average over the
    tokens of the batch. alpha = 1 was tuned with that average, so it is used here (as in `sft`).
    """
    preference = -F.logsigmoid(hp.beta * (scores.chosen_plain_logps - scores.rejected_plain_logps))
    return preference + hp.cpo_alpha * sft(scores, hp)


def orpo(scores: PairScores, hp: LossParameters) -> Tensor:
    """Supervised fine-tuning and preference optimization in one stage, from a base model.

        -m_w - lambda log sigma( log odds(m_w) - log odds(m_l) )
        m = l / |y|,    log odds(m) = m - log(1 - exp m)

    ORPO, arXiv 2403.07691, eq. 3 to 7, with likelihoods averaged over the tokens of each completion.
    """
    chosen, rejected = _mean_logps(scores)
    return -chosen - hp.orpo_lambda * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))
