"""Tables of a row that the Triton kernels read: its blocks of scores, and until where each token is seen.

They are made once a layout and kept with it. A CUDA graph reads them where they lay when it was recorded: another row
of that length takes the recorded one's place by writing its tables over them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.prefix_attention.blocks import Blocks, visible_blocks
from wishbone.ops.prefix_attention.layout import PrefixLayout, TokenTables
from wishbone.ops.to_device import to_device

FEWEST_KEYS = 32
"""Blocks of more keys than this are put together from blocks of this many; lengths of rows are multiples of all."""


ALIGNED = 4
"""Numbers of a table in 16 bytes."""


@dataclass(frozen=True)
class BlockKind:
    """For which blocks tables are made: of how many queries and keys, under which window, listed by queries or keys."""

    window: int | None
    rows: int
    columns: int
    by_keys: bool
    device: torch.device


@dataclass(frozen=True)
class BlockTables:
    """The blocks of scores in which something is seen, those that are seen throughout first; parts of one buffer.

    Each part begins at a multiple of 16 bytes, whatever the row's length: kernels are compiled anew for pointers that
    are aligned otherwise.

    Attributes:
        buffer: int32, the three tables one after the other.
        blocks, width: of queries and of keys (or the other way round).
    """

    buffer: Tensor
    blocks: int
    width: int

    @classmethod
    def of(cls, visible: Blocks, full: Blocks, device: torch.device) -> BlockTables:
        """Return the tables of two bool arrays [blocks, width]."""
        order = np.argsort(-(visible.astype(np.int8) + full), axis=1, kind="stable").astype(np.int32)
        counts = [blocks.sum(axis=1, dtype=np.int32) for blocks in (full, visible)]
        padded = [np.pad(count, (0, -len(count) % ALIGNED)) for count in counts]
        return cls(to_device(torch.from_numpy(np.concatenate((*padded, order.ravel()))), device), *visible.shape)

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return how many blocks are full, how many are seen, both [blocks], and which these are, [blocks, width]."""
        padded = self.blocks + -self.blocks % ALIGNED
        full, count, order = self.buffer.split((padded, padded, self.blocks * self.width))
        return full[: self.blocks], count[: self.blocks], order.view(self.blocks, self.width)


def block_tables(layout: PrefixLayout, kind: BlockKind) -> BlockTables:
    """Return the block tables of a row on `kind.device`, made once."""
    if kind not in layout._cache:
        visible, full = (blocks.T if kind.by_keys else blocks for blocks in _blocks(layout, kind))
        layout._cache[kind] = BlockTables.of(visible, full, kind.device)
    tables = layout._cache[kind]
    assert isinstance(tables, BlockTables)
    return tables


def overwrite_tables(target: PrefixLayout, source: PrefixLayout) -> None:
    """Write the tables of `source` over those that kernels have read of `target`.

    Raises:
        ValueError: if the rows differ in length.
        NotImplementedError: if another backend than the Triton kernels has read `target`.
    """
    if target.length != source.length:
        raise ValueError(f"tables of a row of {source.length} tokens do not fit one of {target.length}")
    for kind, ours in list(target._cache.items()):
        if isinstance(kind, BlockKind) and isinstance(ours, BlockTables):
            ours.buffer.copy_(block_tables(source, kind).buffer)
        elif isinstance(ours, TokenTables):
            ours.buffer.copy_(source.token_tables(ours.buffer.device).buffer)
        elif not isinstance(kind, _HostKind):
            raise NotImplementedError("attention of this row was not computed by the Triton kernels")


@dataclass(frozen=True)
class _HostKind:
    """Which blocks a host's arrays are of."""

    window: int | None
    rows: int
    columns: int


def _blocks(layout: PrefixLayout, kind: BlockKind) -> tuple[Blocks, Blocks]:
    """Return `visible_blocks`; blocks of more keys are put together from smaller ones."""
    key = _HostKind(kind.window, kind.rows, kind.columns)
    finer = _HostKind(kind.window, kind.rows, min(kind.columns, FEWEST_KEYS))
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
