"""The metrics of training, under TRL's names.

Sums stay on the device and are read once per logging interval, after one reduction over all processes, so metrics cost
no synchronization within a step. Rewards are r(x, y) = beta (log pi(y|x) - log pi_ref(y|x)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from wishbone.preference.sequence_scores import SequenceScores

PAIR_MEANS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)

METRICS = (*PAIR_MEANS, "entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy")
"""What every evaluation and every logging interval has."""

PAIR_SUMS = len(PAIR_MEANS) + 7
"""Sums that `PairMetrics.add` adds up: these, four over tokens, two numbers of tokens, and the number of pairs."""

AUXILIARY = 2
"""Sums that `PairMetrics.add_auxiliary` adds up: auxiliary losses, and the number of groups."""


class PairMetrics:
    """Accumulates the metrics of pairs.

    Means over pairs: `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies` (share of pairs with
    r_chosen > r_rejected), `logps/chosen`, `logps/rejected`. Means over scored tokens: `entropy` (of both completions,
    nats), `logits/chosen`, `logits/rejected` (mean logit), `mean_token_accuracy` (chosen tokens that are the model's
    first choice). Mean over groups, where there is one: `aux_loss` (load balancing of experts, not weighted).
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._sums: Tensor | None = None

    def add(self, policy: SequenceScores, ref_logps: Tensor) -> None:
        """Add the pairs of one micro-batch, without waiting for the device."""
        logps = policy.logps.detach().double()
        rewards = self.beta * (logps - ref_logps.double())
        chosen, rejected = rewards[0::2], rewards[1::2]
        scored = policy.scored_lengths.double()
        mean_logit = policy.mean_logit.double()
        sums = torch.stack(
            [
                chosen.sum(),
                rejected.sum(),
                (chosen > rejected).double().sum(),
                (chosen - rejected).sum(),
                logps[0::2].sum(),
                logps[1::2].sum(),
                policy.entropy.double().sum(),
                mean_logit[0::2].sum(),
                mean_logit[1::2].sum(),
                policy.top1[0::2].double().sum(),
                scored[0::2].sum(),
                scored[1::2].sum(),
                torch.ones_like(chosen).sum(),
            ]
        )
        self._plus(pad(sums, (0, AUXILIARY)))

    def add_auxiliary(self, losses: Tensor) -> None:
        """Add the auxiliary losses of groups, [groups], without waiting for the device."""
        losses = losses.detach().double()
        sums = torch.stack([losses.sum(), torch.ones_like(losses).sum()])
        self._plus(pad(sums, (PAIR_SUMS, 0)))

    def add_nothing(self, device: torch.device) -> None:
        """Add no pair; a process without pairs then takes part in `read`, which sums over processes."""
        self._plus(torch.zeros(PAIR_SUMS + AUXILIARY, dtype=torch.float64, device=device))

    def _plus(self, sums: Tensor) -> None:
        self._sums = sums if self._sums is None else self._sums + sums

    @classmethod
    def like(cls, other: PairMetrics) -> PairMetrics:
        """Return empty metrics of the same kind."""
        return cls(other.beta)

    def absorb(self, other: PairMetrics) -> None:
        """Add everything that was added to `other`."""
        if other._sums is not None:
            self._plus(other._sums)

    def read(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Return the metrics of everything added since the last reading, and start over.

        Args:
            reduce: sums a float64 vector over all processes. All processes must then call `read` together.
        """
        if self._sums is None:
            return {}
        *sums, auxiliary, groups = reduce(self._sums).tolist()
        self._sums = None
        entropy, logit_chosen, logit_rejected, top1, chosen_tokens, rejected_tokens, pairs = sums[len(PAIR_MEANS) :]
        metrics = {name: total / pairs for name, total in zip(PAIR_MEANS, sums, strict=False)}
        return metrics | {
            "entropy": entropy / max(chosen_tokens + rejected_tokens, 1),
            "logits/chosen": logit_chosen / max(chosen_tokens, 1),
            "logits/rejected": logit_rejected / max(rejected_tokens, 1),
            "mean_token_accuracy": top1 / max(chosen_tokens, 1),
            **({"aux_loss": auxiliary / groups} if groups else {}),
        }
