"""Tables of a packed row for the kernels: its chunks, and which of them each stem and branch runs through.

A CUDA graph has as many programs as the row that it was recorded with has stems, branches and chunks. So a row that is
recorded has room for more of each. What is left over holds no tokens, and its programs end at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import HostTables, PrefixLayout, RowTables
from wishbone.ops.to_device import to_device

ALIGNED = 4
"""Elements of a table in 16 bytes; Triton compiles a kernel again for pointers of another alignment."""

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Counts:
    """How many stems, branches and chunks tables have room for."""

    stems: int
    branches: int
    chunks: int

    def hold(self, other: Counts) -> bool:
        """Return whether there is room for so many."""
        return other.stems <= self.stems and other.branches <= self.branches and other.chunks <= self.chunks


@dataclass(frozen=True)
class Segments(RowTables):
    """The stems and then the branches of one row, each cut into chunks; what is empty is left out.

    Attributes:
        size: most tokens of a chunk.
        counts: how many there are, with those that are left over.
        buffer: int32, the four tables one after the other.
        chunk_bounds: [chunks, 2]: first token of each chunk, and the one after its last.
        runs: [stems + branches, 2]: first chunk of each, and how many.
        stem_of: [branches]: the stem whose end a branch starts from, -1 for none.
        branches_of: [stems, 2]: first branch of each stem, and how many.
    """

    size: int
    counts: Counts
    buffer: Tensor
    chunk_bounds: Tensor
    runs: Tensor
    stem_of: Tensor
    branches_of: Tensor

    def holds(self, source: PrefixLayout) -> bool:  # noqa: D102
        return self.counts.hold(_cut(source, self.size).counts)

    def overwrite(self, kind: Any, source: PrefixLayout) -> None:  # noqa: D102
        own = _cut(source, self.size)
        if not self.counts.hold(own.counts):
            raise ValueError(f"a row with {own.counts} does not fit into tables for {self.counts}")
        self.buffer.copy_(to_device(torch.from_numpy(own.in_one_buffer(self.counts)), self.buffer.device))


def segments_of(layout: PrefixLayout, size: int, device: torch.device) -> Segments:
    """Return the tables of a row in chunks of `size` tokens on `device`, made once."""
    key = ("segments", size, device)
    if key not in layout._cache:
        cut = _cut(layout, size)
        counts = _with_room(layout, size) if layout.room else cut.counts
        buffer = to_device(torch.from_numpy(cut.in_one_buffer(counts)), device)
        widths = _widths(counts)
        parts = buffer.split([width + -width % ALIGNED for width in widths])
        bounds, runs, stem_of, branches_of = (part[:width] for part, width in zip(parts, widths, strict=True))
        layout._cache[key] = Segments(
            size, counts, buffer, bounds.view(-1, 2), runs.view(-1, 2), stem_of, branches_of.view(-1, 2)
        )
    found = layout._cache[key]
    assert isinstance(found, Segments)
    return found


def _with_room(layout: PrefixLayout, size: int) -> Counts:
    """Return what any row of this length takes at most, of `room` documents with two branches each.

    All but the last token of each chunk of a segment's own may be missing.
    """
    stems, branches = layout.room, 2 * layout.room
    return Counts(stems, branches, (layout.length + (stems + branches) * (size - 1)) // size)


def _widths(counts: Counts) -> list[int]:
    """Elements of the four tables."""
    return [2 * counts.chunks, 2 * (counts.stems + counts.branches), counts.branches, 2 * counts.stems]


@dataclass(frozen=True)
class _Cut:
    """The four tables as lists; `runs` in two parts."""

    bounds: Pairs
    stem_runs: Pairs
    branch_runs: Pairs
    stem_of: list[int]
    branches_of: Pairs

    @property
    def counts(self) -> Counts:
        return Counts(len(self.stem_runs), len(self.branch_runs), len(self.bounds))

    def in_one_buffer(self, counts: Counts) -> np.ndarray[Any, Any]:
        """Return the tables one after the other, with room for `counts`, int32."""
        bounds, runs, stem_of, branches_of = (np.zeros(width + -width % ALIGNED, np.int32) for width in _widths(counts))
        stem_of[:] = -1
        first_branch = 2 * counts.stems
        for table, values in (
            (bounds, self.bounds),
            (runs, self.stem_runs),
            (runs[first_branch:], self.branch_runs),
            (stem_of, self.stem_of),
            (branches_of, self.branches_of),
        ):
            flat = np.array(values, dtype=np.int32).ravel()
            table[: len(flat)] = flat
        return np.concatenate((bounds, runs, stem_of, branches_of))


@dataclass(frozen=True)
class _CutKind(HostTables):
    """Which chunks a row is cut into."""

    size: int


def _cut(layout: PrefixLayout, size: int) -> _Cut:
    """Return the stems and branches of a row in chunks, made once."""
    key = _CutKind(size)
    if key not in layout._cache:
        layout._cache[key] = _made(layout, size)
    found = layout._cache[key]
    assert isinstance(found, _Cut)
    return found


def _made(layout: PrefixLayout, size: int) -> _Cut:
    stems: Pairs = []
    branches: Pairs = []
    stem_of: list[int] = []
    branches_of: Pairs = []
    for document in layout.documents:
        own = [one for one in document.branches() if one[1] > one[0]]
        has_stem = document.stem_end > document.start
        if has_stem:
            stems.append((document.start, document.stem_end))
            branches_of.append((len(branches), len(own)))
        stem_of += [len(stems) - 1 if has_stem else -1] * len(own)
        branches += own
    bounds: Pairs = []
    runs: Pairs = []
    for start, end in [*stems, *branches]:
        cut = [(at, min(at + size, end)) for at in range(start, end, size)]
        runs.append((len(bounds), len(cut)))
        bounds += cut
    return _Cut(bounds, runs[: len(stems)], runs[len(stems) :], stem_of, branches_of)
