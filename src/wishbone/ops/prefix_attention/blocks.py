"""Which blocks of the score matrix attention has to compute, and which of them need no mask.

Every segment of a row sees its stem (a rectangle of the score matrix) and its own past (a triangle). So a few integers
for each segment tell which blocks of `rows` queries by `columns` keys hold a visible pair, and which are visible
throughout. This is worked out on the host, and the mask of the whole row is never made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wishbone.ops.prefix_attention.layout import PrefixLayout

Blocks = np.ndarray[Any, Any]


def visible_blocks(layout: PrefixLayout, window: int | None, *, rows: int, columns: int) -> tuple[Blocks, Blocks]:
    """Return which blocks hold a visible pair, and which are visible throughout.

    Args:
        layout: the row.
        window: a token sees only keys less than this many positions back, or None.
        rows: queries of a block.
        columns: keys of a block.

    Returns:
        Two bool arrays [blocks of queries, blocks of keys]. With a window, every block within reach counts as visible
        and none as visible throughout; the mask decides inside them.
    """
    shape = (-(-layout.length // rows), -(-layout.length // columns))
    pairs = np.zeros(shape, dtype=np.int64)
    visible = np.zeros(shape, dtype=bool)
    for start, end, stem_start, stem_end in layout.segments():
        queries, first_query, end_query = _overlap(start, end, rows)
        keys, first_key, end_key = _overlap(start, end, columns)
        stem, first_stem, end_stem = _overlap(stem_start, stem_end, columns)
        seen = first_key[None] < end_query[:, None]
        whole = end_key[None] <= first_query[:, None] + 1
        count = np.outer(end_query - first_query, end_key - first_key)
        stem_count = np.outer(end_query - first_query, end_stem - first_stem)
        near = np.ones(stem_count.shape, dtype=bool)
        if window is not None:
            seen &= first_query[:, None] - (end_key - 1)[None] < window
            before = stem_end - stem_start
            near = (first_query[:, None] - start + before) - (end_stem - 1 - stem_start)[None] < window
        visible[queries, keys] |= seen
        visible[queries, stem] |= near
        pairs[queries, keys] += np.where(whole, count, 0)
        pairs[queries, stem] += stem_count
    full = pairs == rows * columns if window is None else np.zeros_like(visible)
    return visible, full


def _overlap(start: int, end: int, block: int) -> tuple[slice, Blocks, Blocks]:
    """Return the blocks that tokens `start:end` touch, and the first token and the end of the touched part of each."""
    blocks = slice(start // block, -(-end // block) if end > start else start // block)
    edges = np.arange(blocks.start, blocks.stop)
    return blocks, np.maximum(edges * block, start), np.minimum((edges + 1) * block, end)
