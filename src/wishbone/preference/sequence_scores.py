"""From tokens to sequences: sums over the scored tokens of each completion.

log pi(y|x) = sum_t w_t log pi(y_t | x, y_<t),      w_t = 1, or LD-DPO's weight
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from wishbone.data.batch import PreferenceBatch
from wishbone.ops.to_device import to_device
from wishbone.ops.token_logps import TokenScores
from wishbone.preference.scores import ld_weights


@dataclass(frozen=True)
class SequenceScores:
    """One value per sequence, shape [2 * pairs], chosen and rejected in turn; float32 (float64 for float64 models).

    Only `logps` and `plain_logps` carry gradients.

    Attributes:
        logps: log pi(y|x), with the token weights of LD-DPO if it is on.
        plain_logps: log pi(y|x), every scored token counted once.
        entropy, mean_logit, top1: sums over the scored tokens of the sequence.
        aligned_logps: sum of log p - log sum_v p_v^2 over the scored tokens (WPO).
        completion_lengths: completion tokens, scored or not.
        scored_lengths: scored completion tokens.
    """

    logps: Tensor
    plain_logps: Tensor
    entropy: Tensor
    mean_logit: Tensor
    top1: Tensor
    aligned_logps: Tensor
    completion_lengths: Tensor
    scored_lengths: Tensor

    def of_pairs(self, index: Sequence[int] | range) -> SequenceScores:
        """Return the sequences of the given pairs, in the given order."""
        sequences = to_device(torch.tensor([s for i in index for s in (2 * i, 2 * i + 1)]), self.logps.device)
        return SequenceScores(*(getattr(self, field.name)[sequences] for field in fields(self)))

    @classmethod
    def join(cls, parts: Sequence[SequenceScores]) -> SequenceScores:
        """Return the sequences of all parts, one part after the other."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def sequence_scores(tokens: TokenScores, batch: PreferenceBatch, ld_alpha: float | None = None) -> SequenceScores:
    """Sum the scores of a batch's tokens over each sequence.

    Args:
        tokens: scores of the batch's scored tokens, [scored].
        batch: says which sequence each token belongs to.
        ld_alpha: weight of the tokens beyond the shorter completion of a pair (LD-DPO, arXiv 2409.06411), or None.
    """
    lengths, dtype = batch.scored_lengths.long(), tokens.logps.dtype

    def per_sequence(values: Tensor) -> Tensor:
        return torch.segment_reduce(values, "sum", lengths=lengths, initial=0, unsafe=True)

    plain = per_sequence(tokens.logps)
    logps = plain
    if ld_alpha is not None:
        sibling_scored = batch.scored_lengths.view(-1, 2).flip(1).flatten()[batch.sequence_index]
        logps = per_sequence(tokens.logps * ld_weights(batch.scored_index, sibling_scored, ld_alpha, dtype=dtype))
    return SequenceScores(
        logps=logps,
        plain_logps=plain,
        entropy=per_sequence(tokens.entropy),
        mean_logit=per_sequence(tokens.mean_logit),
        top1=per_sequence(tokens.is_top1.to(dtype)),
        aligned_logps=per_sequence(tokens.logps.detach() - tokens.log_sum_sq_probs),
        completion_lengths=batch.completion_lengths.to(dtype),
        scored_lengths=batch.scored_lengths.to(dtype),
    )
