"""Losses that compare the policy with a reference: DPO and its family.

Every function maps `PairScores` to a loss per pair, [pairs], and states its equation in these letters:

    h_w, h_l    log pi(y|x) / pi_ref(y|x) of the chosen and of the rejected completion
    s_w, s_l    f'(exp h), the same under the chosen f-divergence (`divergence`); s = h for the default
    Delta       s_w - s_l
    sigma, eps  logistic function; label smoothing

All use logsigmoid and sigmoid, so values and gradients stay finite for |h| in the hundreds.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.preference.divergence import divergence_score
from wishbone.preference.scores import LossParameters, PairScores


def _scores(scores: PairScores, hp: LossParameters) -> tuple[Tensor, Tensor]:
    return (
        divergence_score(scores.chosen_logratios, hp.f_divergence, hp.f_alpha),
        divergence_score(scores.rejected_logratios, hp.f_divergence, hp.f_alpha),
    )


def _margin(scores: PairScores, hp: LossParameters) -> Tensor:
    chosen, rejected = _scores(scores, hp)
    return chosen - rejected


def _mean_margin(scores: PairScores, hp: LossParameters) -> Tensor:
    chosen, rejected = _scores(scores, hp)
    return chosen / scores.chosen_lengths.clamp(min=1) - rejected / scores.rejected_lengths.clamp(min=1)


def _smoothed_logistic(logits: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def sigmoid(scores: PairScores, hp: LossParameters) -> Tensor:
    """Maximum likelihood of the preferences under Bradley-Terry: DPO itself, the default.

        -log sigma(beta Delta)

    DPO, arXiv 2305.18290, eq. 7. Ignores label smoothing, as TRL does; `robust` is the loss for noisy labels.
    """
    return -F.logsigmoid(hp.beta * _margin(scores, hp))


def sigmoid_norm(scores: PairScores, hp: LossParameters) -> Tensor:
    """DPO on scores per token, so that length earns nothing; needs a large beta (Tulu 3 uses 5).

        -log sigma(beta (s_w / |y_w| - s_l / |y_l|))

    Length-normalized DPO, Tulu 3, arXiv 2411.15124.
    """
    return -F.logsigmoid(hp.beta * _mean_margin(scores, hp))


def hinge(scores: PairScores, hp: LossParameters) -> Tensor:
    """Stops pushing a pair once its margin is reached.

        max(0, 1 - beta Delta)

    SLiC-HF, arXiv 2305.10425, on DPO's rewards as in RSO, arXiv 2309.06657.
    """
    return torch.relu(1 - hp.beta * _margin(scores, hp))


def ipo(scores: PairScores, hp: LossParameters) -> Tensor:
    """Regresses the margin to a finite target; on noise-free preferences DPO would increase it forever.

        (s_w / |y_w| - s_l / |y_l| - 1 / (2 beta))^2

    IPO, arXiv 2310.12036, eq. 17 (beta is its tau), on scores per token, as its authors confirmed to TRL.
    """
    return (_mean_margin(scores, hp) - 1 / (2 * hp.beta)) ** 2


def exo_pair(scores: PairScores, hp: LossParameters) -> Tensor:
    """Reverse KL from the policy's preference to the smoothed label, mode seeking. Needs 0 < eps < 1 (paper: 1e-3).

        q log(q / (1 - eps)) + (1 - q) log((1 - q) / eps),    q = sigma(beta Delta)

    EXO, arXiv 2402.00856, eq. 16.
    """
    logits = hp.beta * _margin(scores, hp)
    eps = hp.label_smoothing
    return torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-eps)) + torch.sigmoid(-logits) * (
        F.logsigmoid(-logits) - math.log(eps)
    )


def nca_pair(scores: PairScores, hp: LossParameters) -> Tensor:
    """Raises the likelihood of the chosen completion in absolute terms; DPO may let it fall.

        -log sigma(beta h_w) - 1/2 log sigma(-beta h_w) - 1/2 log sigma(-beta h_l)

    NCA, arXiv 2402.05369, with two responses.
    """
    chosen, rejected = hp.beta * scores.chosen_logratios, hp.beta * scores.rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def robust(scores: PairScores, hp: LossParameters) -> Tensor:
    """Unbiased estimate of the DPO loss when a share eps < 1/2 of the labels is swapped.

        [ -(1 - eps) log sigma(beta Delta) + eps log sigma(-beta Delta) ] / (1 - 2 eps)

    Robust DPO, arXiv 2403.00409.
    """
    logits = hp.beta * _margin(scores, hp)
    eps = hp.label_smoothing
    return (-(1 - eps) * F.logsigmoid(logits) + eps * F.logsigmoid(-logits)) / (1 - 2 * eps)


def bco_pair(scores: PairScores, hp: LossParameters) -> Tensor:
    """A binary classifier whose logit is the reward; it judges each completion separately.

        -log sigma(beta h_w) - log sigma(-beta h_l)

    BCO, arXiv 2404.04656, paired and with reward shift 0.
    """
    return -F.logsigmoid(hp.beta * scores.chosen_logratios) - F.logsigmoid(-hp.beta * scores.rejected_logratios)


def sppo_hard(scores: PairScores, hp: LossParameters) -> Tensor:
    """Regresses both rewards to the result of a game, win or lose; for preferences that are not transitive.

        (h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2

    SPPO, arXiv 2405.00675, eq. 4.7 with win probabilities 1 and 0 (beta is the inverse of its eta).
    """
    target = 0.5 / hp.beta
    return (scores.chosen_logratios - target) ** 2 + (scores.rejected_logratios + target) ** 2


def aot(scores: PairScores, hp: LossParameters) -> Tensor:
    """Compares distributions: the sorted margins of the policy must exceed the sorted margins of the reference.

        -(1 - eps) log sigma(beta d_i) - eps log sigma(-beta d_i)
        d_i = i-th smallest log pi(y_w)/pi(y_l) - i-th smallest log pi_ref(y_w)/pi_ref(y_l)

    AOT, arXiv 2406.05882, paired. Element i belongs to rank i in the batch, not to pair i.
    """
    if scores.ref_chosen_logps is None or scores.ref_rejected_logps is None:
        raise ValueError("these scores have no reference log-probabilities")
    policy = torch.sort(scores.chosen_logps - scores.rejected_logps).values
    reference = torch.sort(scores.ref_chosen_logps - scores.ref_rejected_logps).values
    return _smoothed_logistic(hp.beta * (policy - reference), hp.label_smoothing)


def aot_unpaired(scores: PairScores, hp: LossParameters) -> Tensor:
    """Compares distributions: the sorted chosen rewards must exceed the sorted rejected rewards, across all pairs.

        -(1 - eps) log sigma(beta d_i) - eps log sigma(-beta d_i)
        d_i = i-th smallest h_w - i-th smallest h_l

    AOT, arXiv 2406.05882, unpaired. Element i belongs to rank i in the batch, not to pair i.
    """
    chosen = torch.sort(scores.chosen_logratios).values
    rejected = torch.sort(scores.rejected_logratios).values
    return _smoothed_logistic(hp.beta * (chosen - rejected), hp.label_smoothing)


def apo_zero(scores: PairScores, hp: LossParameters) -> Tensor:
    """Raises chosen completions, lowers rejected ones; for chosen completions better than the model's own.

        1 - sigma(beta h_w) + sigma(beta h_l)

    APO, arXiv 2408.06266, eq. 7.
    """
    return torch.sigmoid(-hp.beta * scores.chosen_logratios) + torch.sigmoid(hp.beta * scores.rejected_logratios)


def apo_down(scores: PairScores, hp: LossParameters) -> Tensor:
    """Lowers both completions, the rejected one further; for chosen completions worse than the model's own.

        sigma(beta h_w) + 1 - sigma(beta (h_w - h_l))

    APO, arXiv 2408.06266, eq. 8.
    """
    chosen, rejected = scores.chosen_logratios, scores.rejected_logratios
    return torch.sigmoid(hp.beta * chosen) + torch.sigmoid(-hp.beta * (chosen - rejected))


def discopop(scores: PairScores, hp: LossParameters) -> Tensor:
    """A loss discovered by a language model: logistic for wrongly ranked pairs, exponential for others.

        (1 - m) (-log sigma(z)) + m exp(-z),    z = beta Delta,  m = sigma(z / tau)

    DiscoPOP (LRML), arXiv 2406.08414, eq. 5. m exp(-z) is computed as one exponential, bounded for tau <= 1.
    """
    logits = hp.beta * _margin(scores, hp)
    modulation = logits / hp.discopop_tau
    return torch.exp(F.logsigmoid(modulation) - logits) - torch.sigmoid(-modulation) * F.logsigmoid(logits)


def dpop(scores: PairScores, hp: LossParameters) -> Tensor:
    """DPO with a penalty if the chosen completion falls below the reference; for pairs that differ in few tokens.

        -log sigma(beta (h_w - h_l - lambda max(0, -h_w)))

    DPO-Positive (Smaug), arXiv 2402.13228, eq. 3; the paper uses lambda = 50, beta = 0.3.
    """
    chosen, rejected = scores.chosen_logratios, scores.rejected_logratios
    return -F.logsigmoid(hp.beta * (chosen - rejected - hp.dpop_lambda * torch.relu(-chosen)))


def rdpo(scores: PairScores, hp: LossParameters) -> Tensor:
    """DPO that learns less to write long: a preference for the longer completion is partly attributed to its length.

        -log sigma(beta (h_w - h_l) + alpha (|y_w| - |y_l|))

    R-DPO, arXiv 2403.19159. The sign follows from its objective E[r - alpha |y|] - beta KL, whose optimum has
    r = beta h + alpha |y| + const: alpha > 0 weakens the gradient of pairs whose chosen completion is longer.
    """
    length_margin = hp.rdpo_alpha * (scores.chosen_lengths - scores.rejected_lengths)
    return -F.logsigmoid(hp.beta * (scores.chosen_logratios - scores.rejected_logratios) + length_margin)
