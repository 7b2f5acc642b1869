"""Shared-prefix attention on CUDA with FlexAttention.

FlexAttention computes only the blocks of the score matrix that a BlockMask lists, and applies the mask function only to
blocks that are not wholly visible. Both lists follow from the segment table: every segment sees its stem (a rectangle)
and its own past (a triangle). They are built on the host from a few numbers a segment, without evaluating the mask, and
the row's tokens never leave the host for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from wishbone.ops.prefix_attention.layout import PrefixLayout

BLOCK = 128
TUNED: dict[tuple[tuple[int, int], int], dict[str, int]] = {
    ((9, 0), 128): {
        "BLOCK_M": 64,
        "BLOCK_N": 64,
        "fwd_num_warps": 4,
        "fwd_num_stages": 3,
        "BLOCK_M1": 32,
        "BLOCK_N1": 64,
        "BLOCK_M2": 64,
        "BLOCK_N2": 32,
        "bwd_num_warps": 4,
        "bwd_num_stages": 3,
    },
    ((9, 0), 64): {"BLOCK_M": 128, "BLOCK_N": 64, "fwd_num_warps": 8, "fwd_num_stages": 3},
}
"""Kernel options by compute capability and head size, where they beat the compiler's own choice on an H200 with torch
2.11 (forward and backward of 8,192 tokens, 32 query and 8 key heads): 0.44 and 1.72 ms instead of 0.47 and 2.41 for
128, 0.35 and 1.29 ms instead of 1.00 and 1.37 for 64."""
Blocks = np.ndarray[Any, Any]


def prefix_attention_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return attention over one packed row, [1, heads, tokens, head_dim]; arguments as `prefix_attention`.

    Raises:
        ValueError: if the row is not a multiple of 128 tokens.
    """
    if layout.length % BLOCK:
        raise ValueError(
            f"a row of {layout.length} tokens is not a multiple of {BLOCK}: pad it with a document of its own"
        )
    attend = _compiled() if query.is_cuda else flex_attention
    out = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else _softcapped(softcap, query.device),
        block_mask=block_mask(layout, window, query.device),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=_kernel_options(query),
    )
    assert isinstance(out, Tensor)
    return out


def block_mask(layout: PrefixLayout, window: int | None, device: torch.device) -> BlockMask:
    """Return the BlockMask of a layout, built once a layout, window and device."""
    key = ("block_mask", window, device)
    if key not in layout._cache:
        visible, full = visible_blocks(layout, window)
        partial_count, partial_index = _block_lists(visible & ~full, device)
        full_count, full_index = _block_lists(full, device)
        tables = layout.token_tables(device)
        layout._cache[key] = BlockMask.from_kv_blocks(
            partial_count,
            partial_index,
            full_count,
            full_index,
            BLOCK_SIZE=BLOCK,
            mask_mod=_mask_mod(tables.segment_start, tables.stem_start, tables.stem_end, tables.position, window),
            seq_lengths=(layout.length, layout.length),
        )
    mask = layout._cache[key]
    assert isinstance(mask, BlockMask)
    return mask


def visible_blocks(layout: PrefixLayout, window: int | None = None) -> tuple[Blocks, Blocks]:
    """Return which blocks of 128 queries by 128 keys hold a visible pair, and which are visible throughout.

    Returns:
        Two bool arrays [blocks, blocks]. With a window, blocks within reach count as visible and none as full; the mask
        function decides inside them.
    """
    blocks = -(-layout.length // BLOCK)
    pairs = np.zeros((blocks, blocks), dtype=np.int64)
    visible = np.zeros((blocks, blocks), dtype=bool)
    for start, end, stem_start, stem_end in layout.segments():
        own, rows = _overlap(start, end)
        stem, columns = _overlap(stem_start, stem_end)
        triangle = np.tril(np.outer(rows, rows))
        rectangle = np.outer(rows, columns)
        if window is not None:
            before = stem_end - stem_start
            near_own = _distance(own, own, start, start, end, 0, 0) < window
            near_stem = _distance(own, stem, start, stem_start, stem_end, before, 0) < window
            triangle, rectangle = triangle * near_own, rectangle * near_stem
        visible[own, own] |= triangle > 0
        visible[own, stem] |= rectangle > 0
        pairs[own, own] += np.tril(triangle, -1)
        pairs[own, stem] += rectangle
    full = pairs == BLOCK * BLOCK if window is None else np.zeros_like(visible)
    return visible, full


def _overlap(start: int, end: int) -> tuple[slice, Blocks]:
    """Return the blocks that tokens `start:end` touch and how many of the tokens lie in each."""
    blocks = slice(start // BLOCK, -(-end // BLOCK) if end > start else start // BLOCK)
    edges = np.arange(blocks.start, blocks.stop)
    return blocks, np.minimum((edges + 1) * BLOCK, end) - np.maximum(edges * BLOCK, start)


def _distance(
    queries: slice, keys: slice, query_start: int, key_start: int, key_end: int, query_position: int, key_position: int
) -> Blocks:
    """Return the least position distance between the tokens of each pair of blocks, [query blocks, key blocks]."""
    first_query: Blocks = (
        np.maximum(np.arange(queries.start, queries.stop) * BLOCK, query_start) - query_start + query_position
    )
    last_key: Blocks = (
        np.minimum((np.arange(keys.start, keys.stop) + 1) * BLOCK, key_end) - 1 - key_start + key_position
    )
    distance: Blocks = first_query[:, None] - last_key[None, :]
    return distance


def _block_lists(blocks: Blocks, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return per row of blocks how many are set, [1, 1, rows], and which, first, [1, 1, rows, columns]; int32."""
    order = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    counts = blocks.sum(axis=1).astype(np.int32)
    return torch.from_numpy(counts)[None, None].to(device), torch.from_numpy(order)[None, None].to(device)


def _mask_mod(
    segment_start: Tensor, stem_start: Tensor, stem_end: Tensor, position: Tensor, window: int | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return `PrefixLayout.visible` as FlexAttention wants it; it closes over tensors only, so no row recompiles it."""

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own_past = key >= segment_start[query]
        stem = (key >= stem_start[query]) & (key < stem_end[query])
        return (key <= query) & (own_past | stem)

    if window is None:
        return seen
    reach: int = window

    def seen_in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen(batch, head, query, key) & (position[query] - position[key] < reach)

    return seen_in_window


@cache
def _softcapped(softcap: float, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return soft-capping as FlexAttention wants it; compiled for any shape it takes no floats, so it gets a tensor."""
    bound = torch.tensor(softcap, device=device)

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return bound * torch.tanh(score / bound)

    return capped


def _kernel_options(query: Tensor) -> dict[str, int] | None:
    if not query.is_cuda:
        return None
    return TUNED.get((torch.cuda.get_device_capability(query.device), query.shape[-1]))


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
