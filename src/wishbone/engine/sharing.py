"""Which part of an optimizer step each of several processes computes.

Every process has all pairs of the step, so all of them find the same division without talking. It gives each process
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
        own: indices of its pairs, counted through `groups`; None: all of them.
        scale: factor of the loss of `groups` in the loss of the step.
    """

    groups: list[list[TokenizedPair]]
    own: list[int] | None = None
    scale: float = 1.0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.groups or self.own == []


def share_of(groups: Sequence[Sequence[TokenizedPair]], *, whole_groups: bool, processes: int, process: int) -> Share:
    """Return what one process computes.

    Args:
        groups: all pairs of the step, the same in every process.
        whole_groups: whether a term of the loss couples the pairs of a group.
        processes, process: how many there are, and the index of this one.
    """
    if whole_groups:
        costs = [sum(pair.row_tokens for pair in group) for group in groups]
        own = sorted(evened(costs, processes)[process])
        return Share([list(groups[index]) for index in own], None, len(own) / len(groups))
    costs = [pair.row_tokens for group in groups for pair in group]
    return Share([list(group) for group in groups], sorted(evened(costs, processes)[process]))
