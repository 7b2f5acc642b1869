"""Which token of a packed row lies j before each in its sequence, and which tokens it lies j before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.to_device import to_device


@dataclass(frozen=True)
class Neighbours:
    """Tables of one row for a convolution of some taps.

    Attributes:
        before: [taps - 1, tokens], int32: the token one before, two before, ...; -1 where a sequence begins.
        after: [taps - 1, most, tokens], int32: the tokens that have this one there; a stem's last tokens have one in
            each branch. -1 for none.
    """

    before: Tensor
    after: Tensor


def neighbours_of(layout: PrefixLayout, taps: int, device: torch.device) -> Neighbours:
    """Return the tables of a row on `device`, made once."""
    key = ("neighbours", taps, device)
    if key not in layout._cache:
        layout._cache[key] = _tables(layout, taps, device)
    found = layout._cache[key]
    assert isinstance(found, Neighbours)
    return found


def _tables(layout: PrefixLayout, taps: int, device: torch.device) -> Neighbours:
    tokens = np.arange(layout.length)
    before = np.stack([tokens - j for j in range(1, taps)]) if taps > 1 else np.empty((0, len(tokens)), np.int64)
    for start, end, stem_start, stem_end in layout.segments():
        for j in range(1, taps):
            first = slice(start, min(start + j, end))
            source = stem_end + tokens[first] - start - j
            before[j - 1, first] = np.where(source >= stem_start, source, -1)
    most = max((len(document.branch_ends) for document in layout.documents), default=0) or 1
    after = np.full((max(taps - 1, 0), most, len(tokens)), -1)
    for j in range(taps - 1):
        readers = np.flatnonzero(before[j] >= 0)
        readers = readers[np.argsort(before[j, readers], kind="stable")]
        source, at = before[j, readers], np.arange(len(readers))
        first_of_source = np.maximum.accumulate(np.where(np.diff(source, prepend=-1) != 0, at, 0))
        after[j, at - first_of_source, source] = readers
    tables = (to_device(torch.from_numpy(table.astype(np.int32)), device) for table in (before, after))
    return Neighbours(*tables)
