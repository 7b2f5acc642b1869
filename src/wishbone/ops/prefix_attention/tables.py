"""Tables of a row that the Triton kernels read: its blocks of scores, and where each token's segment and stem lie.

They are made once a layout and kept with it. A CUDA graph reads them where they lay when it was recorded: another row
of that length takes the recorded one's place by writing its tables over them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wishbone.ops.prefix_attention.blocks import Blocks, block_lists, visible_blocks
from wishbone.ops.prefix_attention.layout import PrefixLayout, TokenTables


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
    """Blocks that are visible throughout, and those in which the mask decides.

    Attributes:
        full_count, part_count: how many, for each block of queries (or keys), [blocks], int32.
        full_index, part_index: which, these first, [blocks, width], int32.
    """

    full_count: Tensor
    full_index: Tensor
    part_count: Tensor
    part_index: Tensor


def block_tables(layout: PrefixLayout, kind: BlockKind) -> BlockTables:
    """Return the block tables of a row on `kind.device`, made once."""
    if kind not in layout._cache:
        visible, full = _blocks(layout, kind)
        parts = [blocks.T if kind.by_keys else blocks for blocks in (full, visible & ~full)]
        layout._cache[kind] = BlockTables(*(table for blocks in parts for table in block_lists(blocks, kind.device)))
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
        if isinstance(kind, BlockKind):
            theirs: BlockTables | TokenTables = block_tables(source, kind)
        elif isinstance(ours, TokenTables):
            theirs = source.token_tables(ours.position.device)
        elif isinstance(kind, _HostKind):
            continue
        else:
            raise NotImplementedError("attention of this row was not computed by the Triton kernels")
        for old, new in zip(vars(ours).values(), vars(theirs).values(), strict=True):
            old.copy_(new, non_blocking=True)


@dataclass(frozen=True)
class _HostKind:
    """Which blocks a host's arrays are of."""

    window: int | None
    rows: int
    columns: int


def _blocks(layout: PrefixLayout, kind: BlockKind) -> tuple[Blocks, Blocks]:
    key = _HostKind(kind.window, kind.rows, kind.columns)
    if key not in layout._cache:
        layout._cache[key] = visible_blocks(layout, kind.window, rows=kind.rows, columns=kind.columns)
    blocks = layout._cache[key]
    assert isinstance(blocks, tuple)
    return blocks
