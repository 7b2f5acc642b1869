"""A packed row in chunks of equal size, in the order in which a recurrence runs through them.

A recurrence computes what lies within a chunk for all chunks of a row at once, and only carries a state from chunk to
chunk. So each segment (stem or branch) is cut into chunks, its last one filled up with zeros, which leave a state as it
is where their decay is 1. The chunks are ordered by when they run:

    first chunks of all stems, second chunks of all stems, ...; first chunks of all branches, ...

with the segments in descending order of their chunks, so those that are still running are always the first ones. The
states at the ends of the stems are where their branches start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.to_device import to_device


@dataclass(frozen=True)
class PrefixChunks:
    """The chunks of one row.

    Attributes:
        size: tokens of a chunk.
        count: number of chunks.
        place: [tokens], int64: where each token of the row lies among `count * size`.
        stem_steps, branch_steps: how many stems, and branches, run at each step.
        stem_of: [branches], int64: the stem of each branch, by its order among those that run; their number for a stem
            without tokens.
    """

    size: int
    count: int
    place: Tensor
    stem_steps: tuple[int, ...]
    branch_steps: tuple[int, ...]
    stem_of: Tensor

    def cut(self, x: Tensor) -> Tensor:
        """Return the row `x`, [1, tokens, ...], in chunks, [count, size, ...]; zeros fill up the last of a segment."""
        tokens = x[0]
        chunks = tokens.new_zeros(self.count * self.size, *tokens.shape[1:]).index_copy(0, self.place, tokens)
        return chunks.view(self.count, self.size, *tokens.shape[1:])

    def heads_first(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the row `x`, [1, tokens, heads, ...], as [count, heads, size, ...] of a dtype, contiguous."""
        return self.cut(x).transpose(1, 2).to(dtype, memory_format=torch.contiguous_format)

    def join(self, chunks: Tensor) -> Tensor:
        """Return the row, [1, tokens, ...], that lies in `chunks`, [count, size, ...]."""
        return taken(chunks.flatten(0, 1), self.place)[None]

    def scan(self, zero: Tensor, advance: Callable[[slice, Tensor], tuple[Any, Tensor]]) -> Iterator[Any]:
        """Carry states through the chunks in their order and yield what `advance` returns beside them.

        Args:
            zero: [1, ...]: the state before the first token.
            advance: given which chunks run and the states before them, [chunks, ...], returns anything and the states
                after them.
        """
        ends: list[Tensor] = []
        first, state = 0, zero.expand(self.stem_steps[0] if self.stem_steps else 0, *zero.shape[1:])
        for running, following in _with_next(self.stem_steps):
            result, state = advance(slice(first, first + running), state)
            yield result
            first, state, ended = first + running, state[:following], state[following:]
            ends.append(ended)
        state = torch.cat([*reversed(ends), zero]).index_select(0, self.stem_of)
        for running, following in _with_next(self.branch_steps):
            result, state = advance(slice(first, first + running), state)
            yield result
            first, state = first + running, state[:following]


def prefix_chunks(layout: PrefixLayout, size: int, device: torch.device) -> PrefixChunks:
    """Return the chunks of a row on `device`, made once."""
    key = ("chunks", size, device)
    if key not in layout._cache:
        layout._cache[key] = _chunks(layout, size, device)
    chunks = layout._cache[key]
    assert isinstance(chunks, PrefixChunks)
    return chunks


def taken(rows: Tensor, index: Tensor) -> Tensor:
    """Return rows of a tensor by an index without repetition; its gradient needs no sums."""
    found: Tensor = _Take.apply(rows, index)
    return found


def to_heads(x: Tensor, heads: int) -> Tensor:
    """Return `x`, [count, groups, ...], with each group as often as heads share it, [count, heads, ...]."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = rows.shape[0]
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.rows, *gradient.shape[1:]).index_copy_(0, index, gradient), None


def _chunks(layout: PrefixLayout, size: int, device: torch.device) -> PrefixChunks:
    stems = [(document.start, document.stem_end) for document in layout.documents]
    branches = [(*branch, i) for i, document in enumerate(layout.documents) for branch in document.branches()]
    stem_order = _longest_first([end - start for start, end in stems], size)
    branch_order = _longest_first([end - start for start, end, _ in branches], size)
    place = np.empty(layout.length, dtype=np.int64)
    count, steps = 0, []
    for segments in ([stems[i] for i in stem_order], [branches[i][:2] for i in branch_order]):
        lengths = [-(-(end - start) // size) for start, end in segments]
        running = tuple(sum(length > step for length in lengths) for step in range(max(lengths, default=0)))
        for step, active in enumerate(running):
            for start, end in segments[:active]:
                tokens = np.arange(start + step * size, min(end, start + (step + 1) * size))
                place[tokens] = count * size + np.arange(len(tokens))
                count += 1
        steps.append(running)
    among = {stem: at for at, stem in enumerate(stem_order)}
    stem_of = np.array([among.get(branches[i][2], len(stem_order)) for i in branch_order], dtype=np.int64)
    tables = (to_device(torch.from_numpy(table), device) for table in (place, stem_of))
    return PrefixChunks(size, count, next(tables), steps[0], steps[1], next(tables))


def _longest_first(lengths: Sequence[int], size: int) -> list[int]:
    """Indices of what is not empty, in descending order of chunks."""
    return sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i] // -size)


def _with_next(steps: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(steps, [*steps[1:], 0][: len(steps)], strict=True)
