"""Which token of a packed row lies j before each in its sequence, and which tokens it lies j before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout, RowTables
from wishbone.ops.to_device import to_device

BRANCHES = 2
"""Branches of a stem that the tables of a row with room hold."""


@dataclass(frozen=True)
class Neighbours(RowTables):
    """Tables of one row for a convolution of some taps.

    Attributes:
        before: [taps - 1, tokens], int32: the token one before, two before, ...; -1 where a sequence begins.
        after: [taps - 1, most, tokens], int32: the tokens that have this one there; a stem's last tokens have one in
            each branch. -1 for none.
    """

    before: Tensor
    after: Tensor

    def holds(self, source: PrefixLayout) -> bool:  # noqa: D102
        return _most_branches(source) <= self.after.shape[1]

    def overwrite(self, kind: Any, source: PrefixLayout) -> None:  # noqa: D102
        tables = _tables(source, self.before.shape[0] + 1, self.after.shape[1])
        for own, table in zip((self.before, self.after), tables, strict=True):
            own.copy_(to_device(torch.from_numpy(table), own.device))


def neighbours_of(layout: PrefixLayout, taps: int, device: torch.device) -> Neighbours:
    """Return the tables of a row on `device`, made once."""
    key = ("neighbours", taps, device)
    if key not in layout._cache:
        most = max(_most_branches(layout), BRANCHES if layout.room else 1)
        tables = _tables(layout, taps, most)
        layout._cache[key] = Neighbours(*(to_device(torch.from_numpy(table), device) for table in tables))
    found = layout._cache[key]
    assert isinstance(found, Neighbours)
    return found


def _most_branches(layout: PrefixLayout) -> int:
    return max((len(document.branch_ends) for document in layout.documents), default=0)


def _tables(layout: PrefixLayout, taps: int, most: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    tokens = np.arange(layout.length)
    before = np.stack([tokens - j for j in range(1, taps)]) if taps > 1 else np.empty((0, len(tokens)), np.int64)
    for start, end, stem_start, stem_end in layout.segments():
        for j in range(1, taps):
            first = slice(start, min(start + j, end))
            source = stem_end + tokens[first] - start - j
            before[j - 1, first] = np.where(source >= stem_start, source, -1)
    after = np.full((max(taps - 1, 0), most, len(tokens)), -1)
    for j in range(taps - 1):
        readers = np.flatnonzero(before[j] >= 0)
        readers = readers[np.argsort(before[j, readers], kind="stable")]
        source, at = before[j, readers], np.arange(len(readers))
        first_of_source = np.maximum.accumulate(np.where(np.diff(source, prepend=-1) != 0, at, 0))
        after[j, at - first_of_source, source] = readers
    return before.astype(np.int32), after.astype(np.int32)
