"""Which part of an optimizer step each of several processes computes.

Every process has all pairs of the step, so all compute the same division without communication. It gives each process
about the same number of tokens. A pair keeps the weight that it has in the whole step, so the gradients of all
processes add up to those of one process.

Where a loss couples the pairs of a group, or an auxiliary loss does, whole groups are shared out. A process that gets
nothing adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wishbone.data.batch import TokenizedPair
from wishbone.data.packing import evened


@dataclass(frozen=True)
class Share:
    """What one process computes of a step.

    Attributes:
        groups: the groups that its pairs belong to.
        indices: of its pairs, counted through `groups`; None: all of them.
        scale: factor of the loss of `groups` in the loss of the step.
    """

    groups: list[list[TokenizedPair]]
    indices: list[int] | None = None
    scale: float = 1.0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.groups or self.indices == []


def share_of(groups: Sequence[Sequence[TokenizedPair]], *, whole_groups: bool, processes: int, process: int) -> Share:
    """Return the share of one process.

    Args:
        groups: all pairs of the step, the same in every process.
        whole_groups: whether a term of the loss couples the pairs of a group.
        processes, process: how many there are, and the index of this one.
    """
    if whole_groups:
        costs = [sum(pair.row_tokens for pair in group) for group in groups]
        share = sorted(evened(costs, processes)[process])
        return Share([list(groups[index]) for index in share], None, len(share) / len(groups))
    costs = [pair.row_tokens for group in groups for pair in group]
    return Share([list(group) for group in groups], sorted(evened(costs, processes)[process]))
