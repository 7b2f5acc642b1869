"""A few fixed pairs, scored again and again: how far has the policy moved, and in which direction?

For the chosen answer y_w of a pair, and likewise for the rejected one, with n scored tokens:

    drift = 1/n ( log pi(y_w|x) - log pi_ref(y_w|x) )        nats a token; below 0 the answer lost probability

The loss sees the margin r_w - r_l alone, so it also falls while both answers lose probability: likelihood displacement
(Razin et al. 2024, arXiv:2410.08847). An evaluation that comes by scores the same pairs anyway; then its values are
taken, and nothing is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.preference.sequence_scores import SequenceScores
from wishbone.reference.cache import CachedReference
from wishbone.reference.reference import NoReference, ReferencePolicy, Stored

PAIRS = 8
SATURATED = 0.99
"""A pair counts as saturated from sigmoid(margin) = 0.99 on: it has 1 % of its first weight in the gradient."""


class Sample:
    """Scores the same pairs whenever it is asked to.

    Args:
        pairs: the pairs.
        heldout: whether they are held out; otherwise they are pairs of the training data.
        beta: scale of the rewards.
        moves: whether the reference follows the policy.

    Attributes:
        reference: log pi_ref of each sequence of a reference-free loss, which are the first that were measured; None
            where the loss has a reference.
    """

    def __init__(self, pairs: Sequence[TokenizedPair], *, heldout: bool, beta: float, moves: bool) -> None:
        self.pairs, self.heldout, self._moves = list(pairs), heldout, moves
        self.reference: list[float] | None = None
        self._beta = beta
        self._places = {_key(pair): place for place, pair in enumerate(self.pairs)}
        self._seen: dict[int, Tensor] = {}
        self._ref_logps: list[list[float]] | None = None

    def observe(self, pairs: Sequence[TokenizedPair], scores: SequenceScores, ref_logps: Tensor) -> None:
        """Note the pairs of this sample among those that an evaluation scored, without waiting for the device."""
        places = {
            index: place for index, pair in enumerate(pairs) if (place := self._places.get(_key(pair))) is not None
        }
        if places:
            columns = _columns(scores, ref_logps)
            self._seen |= {place: columns[2 * index : 2 * index + 2] for index, place in places.items()}

    def observed(self, step: PreferenceStep) -> dict[str, float] | None:
        """Return the values of the last evaluation, or None if it did not score every pair of the sample."""
        seen, self._seen = self._seen, {}
        if len(seen) < len(self.pairs):
            return None
        columns = torch.cat([seen[place] for place in range(len(self.pairs))])
        self._ref_logps = columns[:, 1].view(-1, 2).tolist()
        return self._values(columns, step)

    def measure(self, step: PreferenceStep, execution: Execution) -> dict[str, float]:
        """Score the pairs and return the values; a reference that does not move scores them once."""
        reference = uncached(step.reference)
        known = self._ref_logps is not None and not self._moves
        pairs = self.pairs
        if known:
            pairs = [
                replace(pair, ref_chosen_logps=chosen, ref_rejected_logps=rejected)
                for pair, (chosen, rejected) in zip(pairs, self._ref_logps or [], strict=True)
            ]
        scoring = PreferenceStep(step.policy, Stored() if known else reference, step.objective)
        scores, ref_logps = scoring.score(pairs, execution)
        self._ref_logps = ref_logps.view(-1, 2).tolist()
        return self._values(_columns(scores, ref_logps), step)

    def _values(self, columns: Tensor, step: PreferenceStep) -> dict[str, float]:
        rows = columns.cpu().tolist()
        logps, reference, entropy, tokens = ([row[column] for row in rows] for column in range(4))
        if isinstance(step.reference, NoReference):
            self.reference = self.reference or logps
            reference = self.reference
        ratios = [policy - other for policy, other in zip(logps, reference, strict=True)]
        drift = [ratio / max(count, 1) for ratio, count in zip(ratios, tokens, strict=True)]
        margins = [
            self._beta * (chosen - rejected) for chosen, rejected in zip(ratios[0::2], ratios[1::2], strict=True)
        ]
        return {
            "chosen_drift": fmean(drift[0::2]),
            "rejected_drift": fmean(drift[1::2]),
            "margin": fmean(margins),
            "accuracy": fmean(margin > 0 for margin in margins),
            "saturated": fmean(margin > math.log(SATURATED / (1 - SATURATED)) for margin in margins),
            "pair_loss": fmean(_softplus(-margin) for margin in margins),
            "reward_spread": math.sqrt(fmean((self._beta * ratio) ** 2 for ratio in ratios)),
            "entropy": sum(entropy) / max(sum(tokens), 1),
            "chosen_tokens": fmean(tokens[0::2]),
        }


def uncached(reference: ReferencePolicy) -> ReferencePolicy:
    """Return what computes a reference's values, so that the guard's pairs are not counted among the run's."""
    return reference.inner if isinstance(reference, CachedReference) else reference


def _columns(scores: SequenceScores, ref_logps: Tensor) -> Tensor:
    """Log-probability, that of the reference, entropy and scored tokens of each sequence, [2 * pairs, 4], float64."""
    columns = (scores.logps, ref_logps, scores.entropy, scores.scored_lengths)
    return torch.stack([column.detach().double() for column in columns], dim=1)


def _key(pair: TokenizedPair) -> tuple[object, ...]:
    images = None if pair.images is None else pair.images.digest
    return tuple(pair.chosen), tuple(pair.rejected), pair.chosen_start, pair.rejected_start, images


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
