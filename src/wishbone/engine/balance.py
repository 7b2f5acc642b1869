"""The auxiliary loss of a step's groups, summed over rows that hold pairs of any of them.

A group's loss E sum_i f_i P_i is linear in its sums of probabilities, which rows add up, and f has no gradient. So a
row that knows f of a whole group adds its exact part, value and gradients:

    c / G  E sum_i f_gi (row's part of P_gi)        for each of the G groups

f is known from the row itself where all pairs of the group lie in it; otherwise the step counts choices first, in a
pass without gradients over the rows of such groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wishbone.data.batch import PreferenceBatch, TokenizedPair
from wishbone.ops.to_device import to_device
from wishbone.policy.router_logits import RowRouting
from wishbone.preference.load_balancing import LoadBalancing, load_balancing_loss


class StepBalance:
    """Sums router statistics of one step by group.

    Args:
        term: the auxiliary loss.
        groups: the pairs of the step.
        device: of the sums.
    """

    def __init__(self, term: LoadBalancing, groups: Sequence[Sequence[TokenizedPair]], device: torch.device) -> None:
        self.term = term
        self._device = device
        self._group = [index for index, group in enumerate(groups) for _ in group]
        self._pairs = [len(group) for group in groups]
        self._tokens = self._on_device(
            [float(sum(len(pair.chosen) + len(pair.rejected) for pair in group)) for group in groups]
        )
        self._chosen: Tensor | None = None
        self._probable: Tensor | None = None
        self._layers = 0
        self._added: set[int] = set()

    def split(self, row: Sequence[int]) -> bool:
        """Return whether a row, indices of its pairs, has pairs of a group that has pairs in other rows."""
        return any(pairs < self._pairs[group] for group, pairs in self._pairs_of(row).items())

    def routing(self, row: Sequence[int], batch: PreferenceBatch) -> RowRouting:
        """Return the recorder of a row's router logits."""
        numbers = {group: number for number, group in enumerate(self._pairs_of(row))}
        return RowRouting(batch, [numbers[self._group[pair]] for pair in row], self.term.top_k)

    def add(self, row: Sequence[int], routing: RowRouting) -> None:
        """Add a row's sums to those of its groups, unless it was added before."""
        if row[0] in self._added:
            return
        self._added.add(row[0])
        if self._chosen is None or self._probable is None:
            self._chosen, self._probable = (
                sums.new_zeros(len(self._pairs), sums.shape[1]) for sums in (routing.chosen, routing.probable.detach())
            )
        groups = self._on_device(list(self._pairs_of(row)))
        self._chosen.index_add_(0, groups, routing.chosen)
        self._probable.index_add_(0, groups, routing.probable.detach())
        self._layers = routing.layers

    def row_loss(self, row: Sequence[int], routing: RowRouting) -> Tensor:
        """Return a row's part of the mean of the groups' auxiliary losses, times the coefficient; a scalar.

        The other rows of its groups must have been added.
        """
        self.add(row, routing)
        assert self._chosen is not None
        groups = self._on_device(list(self._pairs_of(row)))
        by_group = load_balancing_loss(self._chosen[groups], routing.probable, self._layers * self._tokens[groups])
        return self.term.coefficient * by_group.sum() / len(self._pairs)

    def mean_loss(self) -> Tensor:
        """Return the mean of the groups' auxiliary losses, times the coefficient, once all rows were added."""
        return self.term.coefficient * self.losses().mean()

    def losses(self) -> Tensor:
        """Return the auxiliary loss of each group without the coefficient, [groups], once all rows were added."""
        assert self._chosen is not None and self._probable is not None
        return load_balancing_loss(self._chosen, self._probable, self._layers * self._tokens)

    def _pairs_of(self, row: Sequence[int]) -> dict[int, int]:
        """How many pairs of each group lie in a row, groups in the order of their first pair."""
        counts: dict[int, int] = {}
        for pair in row:
            counts[self._group[pair]] = counts.get(self._group[pair], 0) + 1
        return counts

    def _on_device(self, values: list[float] | list[int]) -> Tensor:
        dtype = torch.float64 if values and isinstance(values[0], float) else torch.int64
        return to_device(torch.tensor(values, dtype=dtype), self._device)
