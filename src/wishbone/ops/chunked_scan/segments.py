"""Tables of a packed row for the kernels: its chunks, and which of them each stem and branch runs through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.to_device import to_device


@dataclass(frozen=True)
class Segments:
    """The stems and then the branches of one row, each cut into chunks; what is empty is left out.

    Attributes:
        stems, branches: how many there are.
        chunks: of all.
        chunk_bounds: [chunks, 2], int32: first token of each chunk, and the one after its last.
        runs: [stems + branches, 2], int32: first chunk of each, and how many.
        stem_of: [branches], int32: the stem whose end a branch starts from, -1 for none.
        branches_of: [stems, 2], int32: first branch of each stem, and how many.
    """

    stems: int
    branches: int
    chunks: int
    chunk_bounds: Tensor
    runs: Tensor
    stem_of: Tensor
    branches_of: Tensor


def segments_of(layout: PrefixLayout, size: int, device: torch.device) -> Segments:
    """Return the tables of a row in chunks of `size` tokens on `device`, made once."""
    key = ("segments", size, device)
    if key not in layout._cache:
        layout._cache[key] = _tables(layout, size, device)
    found = layout._cache[key]
    assert isinstance(found, Segments)
    return found


def _tables(layout: PrefixLayout, size: int, device: torch.device) -> Segments:
    stems: list[tuple[int, int]] = []
    branches: list[tuple[int, int]] = []
    stem_of: list[int] = []
    branches_of: list[tuple[int, int]] = []
    for document in layout.documents:
        own = [one for one in document.branches() if one[1] > one[0]]
        has_stem = document.stem_end > document.start
        if has_stem:
            stems.append((document.start, document.stem_end))
            branches_of.append((len(branches), len(own)))
        stem_of += [len(stems) - 1 if has_stem else -1] * len(own)
        branches += own
    bounds: list[tuple[int, int]] = []
    runs: list[tuple[int, int]] = []
    for start, end in [*stems, *branches]:
        cut = [(at, min(at + size, end)) for at in range(start, end, size)]
        runs.append((len(bounds), len(cut)))
        bounds += cut
    tables = (bounds, runs, stem_of, branches_of)
    shapes = ((-1, 2), (-1, 2), (-1,), (-1, 2))
    on_device = (
        to_device(torch.from_numpy(np.array(table, dtype=np.int32).reshape(shape)), device)
        for table, shape in zip(tables, shapes, strict=True)
    )
    return Segments(len(stems), len(branches), len(bounds), *on_device)
