"""What a run minimizes: losses, their weights and hyperparameters, as one object that the step calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from wishbone.preference.load_balancing import LoadBalancing
from wishbone.preference.losses import COUPLED, are_reference_free, check_losses, preference_loss
from wishbone.preference.scores import LossParameters, PairScores, wpo_weight
from wishbone.preference.sequence_scores import SequenceScores


@dataclass(frozen=True)
class Objective:
    """A weighted sum of preference losses.

    Attributes:
        losses: names, keys of `LOSSES`.
        loss_weights: weight of each, or None for 1.
        parameters: hyperparameters of the losses.
        ld_alpha: LD-DPO's weight of the tail of the longer completion, or None.
        use_weighting: whether pairs are weighted as in WPO (arXiv 2406.11827).
        load_balancing: the auxiliary loss of a mixture of experts, or None. It is no loss of pairs: the step adds it to
            each group's loss.

    Raises:
        RequestError: the combination is not defined.
    """

    losses: tuple[str, ...] = ("sigmoid",)
    loss_weights: tuple[float, ...] | None = None
    parameters: LossParameters = field(default_factory=LossParameters)
    ld_alpha: float | None = None
    use_weighting: bool = False
    load_balancing: LoadBalancing | None = None

    def __post_init__(self) -> None:
        check_losses(self.losses, self.loss_weights, self.parameters, use_weighting=self.use_weighting)

    @property
    def coupled(self) -> bool:
        """Whether a pair's loss depends on the other pairs of its group."""
        return not COUPLED.isdisjoint(self.losses)

    @property
    def reference_free(self) -> bool:
        """Whether no loss reads the reference policy."""
        return are_reference_free(self.losses)

    def __call__(self, policy: SequenceScores, ref_logps: Tensor, mean_chosen_scored: Tensor) -> Tensor:
        """Return the loss of each pair, [pairs], differentiable in the policy's log-probabilities.

        Args:
            policy: scores of the pairs under the policy; for a coupled loss, the pairs of one whole group.
            ref_logps: log pi_ref(y|x), [2 * pairs].
            mean_chosen_scored: for each pair the mean number of scored chosen tokens in its group, [pairs].
        """
        chosen, rejected = slice(0, None, 2), slice(1, None, 2)
        lengths, scored, ref = policy.completion_lengths, policy.scored_lengths, ref_logps.to(policy.logps.dtype)
        mean_aligned = policy.aligned_logps / scored.clamp(min=1)
        scores = PairScores(
            chosen_logps=policy.logps[chosen],
            rejected_logps=policy.logps[rejected],
            chosen_plain_logps=policy.plain_logps[chosen],
            rejected_plain_logps=policy.plain_logps[rejected],
            ref_chosen_logps=None if self.reference_free else ref[chosen],
            ref_rejected_logps=None if self.reference_free else ref[rejected],
            chosen_lengths=lengths[chosen],
            rejected_lengths=lengths[rejected],
            chosen_scored=scored[chosen],
            rejected_scored=scored[rejected],
            mean_chosen_scored=mean_chosen_scored.to(policy.logps.dtype),
            weights=wpo_weight(mean_aligned[chosen], mean_aligned[rejected]) if self.use_weighting else None,
        )
        return preference_loss(scores, self.parameters, self.losses, self.loss_weights)
