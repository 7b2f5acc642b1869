"""The tables of a row that the Triton kernels read: which blocks of scores to compute, in which order.

They are made once for each layout and kept with it. A CUDA graph reads them at the addresses they had when it was
recorded; to replay the graph for another row of that length, the tables of that row are written over the old ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.prefix_attention.blocks import Blocks, visible_blocks
from wishbone.ops.prefix_attention.layout import HostTables, PrefixLayout, RowTables
from wishbone.ops.to_device import to_device

FINEST_KEYS = 32
"""Tables of blocks with more keys than this are combined from tables of blocks with this many keys."""

ALIGNED = 4
"""Elements of a table in 16 bytes."""


@dataclass(frozen=True)
class BlockKind:
    """Which blocks a table lists: their queries and keys, the window, and whether it lists them by query or by key."""

    window: int | None
    rows: int
    columns: int
    by_keys: bool
    device: torch.device


@dataclass(frozen=True)
class BlockTables(RowTables):
    """The blocks that hold a visible pair, the ones that are visible throughout first; four parts of one buffer.

    Long lists come first, so that no program with a long walk begins last: a list is before those of fewer than half as
    many blocks or so. Within such a class they lie as in the row, so that programs at work read keys that are close.

    Each part begins at a multiple of 16 bytes whatever the length of the row, because Triton compiles a kernel again
    for pointers of another alignment.

    Attributes:
        buffer: int32, the four tables one after the other.
        blocks: blocks of queries, each with a list of blocks of keys; or the other way round.
        width: length of such a list.
    """

    buffer: Tensor
    blocks: int
    width: int

    @classmethod
    def of(cls, visible: Blocks, full: Blocks, device: torch.device) -> BlockTables:
        """Return the tables of two bool arrays [blocks, width]."""
        order = np.argsort(-(visible.astype(np.int8) + full), axis=1, kind="stable").astype(np.int32)
        counts = [blocks.sum(axis=1, dtype=np.int32) for blocks in (full, visible)]
        _, length_class = np.frexp(counts[1])
        longest_first = np.argsort(-length_class, kind="stable")
        numbers = (longest_first.astype(np.int32), *(count[longest_first] for count in counts))
        padded = [np.pad(part, (0, -len(part) % ALIGNED)) for part in numbers]
        buffer = np.concatenate((*padded, order[longest_first].ravel()))
        return cls(to_device(torch.from_numpy(buffer), device), *visible.shape)

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return whose each list is, how many of its blocks are full and how many visible, and the lists.

        The first three are [blocks], the last is [blocks, width].
        """
        padded = self.blocks + -self.blocks % ALIGNED
        *numbers, lists = self.buffer.split((padded, padded, padded, self.blocks * self.width))
        owner, full, count = (part[: self.blocks] for part in numbers)
        return owner, full, count, lists.view(self.blocks, self.width)

    def overwrite(self, kind: Any, source: PrefixLayout) -> None:  # noqa: D102
        self.buffer.copy_(block_tables(source, kind).buffer)


def block_tables(layout: PrefixLayout, kind: BlockKind) -> BlockTables:
    """Return the block tables of a row on `kind.device`, made once."""
    if kind not in layout._cache:
        visible, full = (blocks.T if kind.by_keys else blocks for blocks in _blocks(layout, kind))
        layout._cache[kind] = BlockTables.of(visible, full, kind.device)
    tables = layout._cache[kind]
    assert isinstance(tables, BlockTables)
    return tables


def tables_hold(target: PrefixLayout, source: PrefixLayout) -> bool:
    """Return whether the tables of `source` fit into those of `target` that kernels have read."""
    tables = [ours for ours in target._cache.values() if isinstance(ours, RowTables)]
    return target.length == source.length and all(ours.holds(source) for ours in tables)


def overwrite_tables(target: PrefixLayout, source: PrefixLayout) -> None:
    """Write the tables of `source` over those of `target` that kernels have read.

    Raises:
        ValueError: if the rows differ in length, or `source` has more segments than `target` has room for.
        NotImplementedError: if something else than the Triton kernels has computed layers of `target`.
    """
    if target.length != source.length:
        raise ValueError(f"tables of a row of {source.length} tokens do not fit one of {target.length}")
    for kind, ours in list(target._cache.items()):
        if isinstance(ours, RowTables):
            ours.overwrite(kind, source)
        elif not isinstance(kind, HostTables):
            raise NotImplementedError("some layers of this row were not computed by the Triton kernels")


@dataclass(frozen=True)
class _HostKind(HostTables):
    """Which blocks two bool arrays on the host are of."""

    window: int | None
    rows: int
    columns: int


def _blocks(layout: PrefixLayout, kind: BlockKind) -> tuple[Blocks, Blocks]:
    """Return `visible_blocks`; blocks of more than `FINEST_KEYS` keys are combined from finer ones."""
    key = _HostKind(kind.window, kind.rows, kind.columns)
    finer = _HostKind(kind.window, kind.rows, min(kind.columns, FINEST_KEYS))
    if key not in layout._cache:
        if finer not in layout._cache:
            layout._cache[finer] = visible_blocks(layout, kind.window, rows=kind.rows, columns=finer.columns)
        fine = layout._cache[finer]
        assert isinstance(fine, tuple)
        together = [blocks.reshape(len(blocks), -1, kind.columns // finer.columns) for blocks in fine]
        layout._cache[key] = together[0].any(axis=2), together[1].all(axis=2)
    blocks = layout._cache[key]
    assert isinstance(blocks, tuple)
    return blocks
