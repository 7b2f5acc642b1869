"""Launches of the kernels, and the scan as one function with a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wishbone.ops.chunked_scan import CHUNK, MOST_KEY_DIM, gradient_kernels, input_kernels, kernels
from wishbone.ops.chunked_scan.segments import Segments, segments_of
from wishbone.ops.launch_sizes import power_of_two, tiles
from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.staged_launch import launch

CARRIED_V, OUTPUT_V, GRADIENT_V, GRADIENT_K = 32, 64, 32, 64
"""How much of a value, or of a key, one program works on: carrying states, computing outputs, computing gradients."""
ONE_STAGE = 1
"""Pipeline stages of the delta rule's largest programs, of which a processor has room for two then: on an H200 a
quarter less time than with three (`python -m benchmarks scans --launches`)."""
MOST_STATE_BYTES = 1 << 29
"""States of a row that are held at once; more heads are run one part after the other."""


@dataclass(frozen=True)
class Rule:
    """What a scan computes beside its tensors.

    Attributes:
        scale: of queries.
        delta: whether a write replaces what is read (the delta rule).
        unit: whether queries and keys are divided by their length.
    """

    scale: float
    delta: bool = False
    unit: bool = False


def chunked_scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    weight: Tensor,
    layout: PrefixLayout,
    rule: Rule,
    skip: Tensor | None = None,
) -> Tensor:
    """Return the outputs of one packed row in which every branch continues its stem.

    States and sums are float32; products of 16-bit inputs round their factors to TF32, those of float32 do not.

    Args:
        query, key: [tokens, key_heads, key_dim], at most 128 elements a key.
        value: [tokens, heads, value_dim]; heads are a multiple of key_heads.
        log_decay, weight: [tokens, heads]: g, at most 0, and beta or dt.
        layout: where the documents lie; `layout.length` equals `tokens`.
        rule: which scan it is.
        skip: [heads] or None: what is added to an output, times the value.

    Returns:
        [tokens, heads, value_dim], dtype of `value`.

    Raises:
        ValueError: the row and its layout differ in length, or keys are too long.
    """
    if query.shape[0] != layout.length or query.shape[2] > MOST_KEY_DIM:
        raise ValueError(
            f"a query of shape {tuple(query.shape)} is not one row of {layout.length} tokens "
            f"with at most {MOST_KEY_DIM} elements a head"
        )
    out: Tensor = _Scan.apply(query, key, value, log_decay, weight, skip, layout, rule)
    return out


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        weight: Tensor,
        skip: Tensor | None,
        layout: PrefixLayout,
        rule: Rule,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, log_decay, weight, skip)
        ctx.segments, ctx.rule = segments_of(layout, CHUNK, query.device), rule
        rows = _rows_of(query, key, value, log_decay, weight, skip, ctx.segments, rule)
        return _in_one([row.outputs() for _, _, row in rows])

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs = query, key, value, log_decay, weight, skip = ctx.saved_tensors
        parts: list[Sequence[Tensor | None]] = []
        d_keys: list[Tensor] | None = None
        for heads, keys, row in _rows_of(query, key, value, log_decay, weight, skip, ctx.segments, ctx.rule):
            *of_keys, d_value, d_log_decay, d_weight, d_skip = row.gradients(d_out[:, heads].contiguous())
            d_keys = _with_part(d_keys, of_keys, keys, inputs[:2])
            parts.append((d_value, d_log_decay, d_weight, d_skip))
        joined = [
            None if one is None else _in_one(column)
            for one, column in zip((1, 1, 1, inputs[5]), zip(*parts, strict=True), strict=True)
        ]
        assert d_keys is not None
        found = (*d_keys, *joined)
        pairs = zip(inputs, found, strict=True)
        return (*(None if d is None else d.to(x.dtype) for x, d in pairs), None, None)


def _in_one(parts: Sequence[Tensor]) -> Tensor:
    """Join tensors of some heads each, [tokens, heads, ...] or [heads]; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1 if parts[0].ndim > 1 else 0)


def _with_part(totals: list[Tensor] | None, part: list[Tensor], heads: slice, like: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients of query and key with what some heads give to them; a first part that is all is not copied."""
    if totals is None:
        if all(one.shape == x.shape for one, x in zip(part, like, strict=True)):
            return part
        totals = [x.new_zeros(x.shape, dtype=torch.float32) for x in like]
    for total, one in zip(totals, part, strict=True):
        total[:, heads] += one
    return totals


def _rows_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    segments: Segments,
    rule: Rule,
) -> Iterator[tuple[slice, slice, _Row]]:
    """Yield slices of heads that take bounded memory each, the slices of their keys' heads, and their rows."""
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    heads, group = value.shape[1], value.shape[1] // key.shape[1]
    states = 4 * segments.counts.chunks * key.shape[2] * value.shape[2]
    size = _heads_at_once(heads, group, max(1, MOST_STATE_BYTES // max(states, 1)))
    for first in range(0, heads, size):
        of, keys = slice(first, first + size), slice(first // group, (first + size - 1) // group + 1)
        g, beta = (x[:, of].to(torch.float32).contiguous() for x in (log_decay, weight))
        own_skip = None if skip is None else skip[of].float().contiguous()
        yield of, keys, _Row(query[:, keys], key[:, keys], value[:, of], g, beta, own_skip, segments, rule)


def _heads_at_once(heads: int, group: int, most: int) -> int:
    """The largest part of the heads, at most `most`, that holds whole groups or lies in one."""
    fits = (size for size in range(min(heads, most), 0, -1) if heads % size == 0)
    return next(size for size in fits if size % group == 0 or group % size == 0)


@dataclass(frozen=True)
class _Row:
    """Some heads of one row on their way through the kernels."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    weight: Tensor
    skip: Tensor | None
    segments: Segments
    rule: Rule

    def outputs(self) -> Tensor:
        _inverse, _reading, new, states = self._states()
        out = torch.empty(self.value.shape, dtype=self.value.dtype, device=self.value.device)
        s, n, sizes = self.segments, self.segments.counts, self._sizes(OUTPUT_V)
        launch(
            kernels.chunk_outputs, (n.chunks, self._heads, tiles(self._v, OUTPUT_V)), self.query.device,
            self.query, self.key, self.value, self.log_decay, self.skip, new, states, s.chunk_bounds, out,
            *self._strides(self.query, self.key, self.value), self._heads, self._group, self.rule.scale,
            self._k, self._v, SKIP=self.skip is not None, UNIT=self.rule.unit,
            **sizes,
        )  # fmt: skip
        return out

    def _states(self) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        """T, W, u, and the states before the chunks."""
        s, n, tokens, sizes = self.segments, self.segments.counts, len(self.query), self._sizes(CARRIED_V)
        new, states = self._empty(tokens, self._heads, self._v), self._empty(n.chunks, self._heads, self._k, self._v)
        ends = self._empty(n.stems, self._heads, self._k, self._v)
        inverse = reading = None
        if self.rule.delta:
            inverse, reading = self._empty(tokens, self._heads, CHUNK), self._empty(tokens, self._heads, self._k)
            launch(
                kernels.solve_chunks, (n.chunks, self._heads), self.query.device,
                self.key, self.value, self.log_decay, self.weight, s.chunk_bounds, inverse, reading, new,
                *self._strides(self.key, self.value), self._heads, self._group, self._k, self._v,
                UNIT=self.rule.unit, **sizes,
            )  # fmt: skip
        for stems, count in ((True, n.stems), (False, n.branches)):
            launch(
                kernels.carry_states, (count, self._heads, tiles(self._v, CARRIED_V)), self.query.device,
                self.key, self.value, self.log_decay, self.weight, reading, new, s.chunk_bounds, s.runs, s.stem_of,
                states, ends, *self._strides(self.key, self.value), self._heads, self._group, n.stems,
                self._k, self._v, STEMS=stems, DELTA=self.rule.delta, UNIT=self.rule.unit,
                **sizes,
            )  # fmt: skip
        return inverse, reading, new, states

    def gradients(self, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Gradients of query and key, in float32 where heads share them; of value, log_decay, weight and skip."""
        s, n, rule, tokens = self.segments, self.segments.counts, self.rule, len(self.query)
        inverse, reading, new, states = self._states()
        d_new, d_states = torch.empty_like(new), torch.empty_like(states)
        d_starts = self._empty(n.branches, self._heads, self._k, self._v)
        keys, all_strides = self._strides(self.query, self.key), self._strides(self.query, self.key, self.value)
        common = self._heads, self._group, rule.scale
        stages = {"num_stages": ONE_STAGE} if rule.delta else {}
        launch(
            gradient_kernels.local_gradients, (n.chunks, self._heads, tiles(self._v, OUTPUT_V)), self.query.device,
            self.query, self.key, self.log_decay, d_out, s.chunk_bounds, d_new, *keys, *common, self._k, self._v,
            UNIT=rule.unit, **self._sizes(OUTPUT_V),
        )  # fmt: skip
        for stems, count in ((False, n.branches), (True, n.stems)):
            launch(
                gradient_kernels.carry_gradients, (count, self._heads, tiles(self._v, CARRIED_V)), self.query.device,
                self.query, self.key, self.log_decay, d_out, reading, d_new, s.chunk_bounds, s.runs, s.branches_of,
                d_states, d_starts, *keys, *common, n.stems, self._k, self._v, STEMS=stems, DELTA=rule.delta,
                UNIT=rule.unit, **self._sizes(CARRIED_V), **stages,
            )  # fmt: skip
        del d_starts
        d_read, d_kept = (self._empty(tokens, self._heads, self._k) for _ in range(2))
        block_k = min(GRADIENT_K, max(16, power_of_two(self._k)))
        parts = tiles(self._k, block_k)
        d_last = self._empty(n.chunks, self._heads, parts)
        sizes = self._sizes(GRADIENT_V) | {"BLOCK_K": block_k}
        launch(
            gradient_kernels.state_gradients, (n.chunks, self._heads, parts), self.query.device,
            d_out, new, d_new, states, d_states, s.chunk_bounds, d_read, d_kept, reading, d_last,
            self._heads, self._k, self._v, DELTA=rule.delta, **sizes,
        )  # fmt: skip
        del states, d_states
        dtype = torch.float32 if self._group > 1 else self.query.dtype
        d_query, d_key = (torch.empty(d_read.shape, dtype=dtype, device=d_read.device) for _ in range(2))
        d_value = torch.empty(self.value.shape, dtype=self.value.dtype, device=new.device)
        d_log_decay, d_weight = torch.empty_like(self.log_decay), torch.empty_like(self.weight)
        d_skip = None if self.skip is None else new.new_zeros(n.chunks, self._heads)
        launch(
            input_kernels.input_gradients, (n.chunks, self._heads), self.query.device,
            self.query, self.key, self.value, self.log_decay, self.weight, self.skip, d_out, inverse, new, d_new,
            d_read, d_kept, reading, d_last, s.chunk_bounds, d_query, d_key, d_value, d_log_decay, d_weight, d_skip,
            *all_strides, *common, self._k, self._v, DELTA=rule.delta, SKIP=self.skip is not None, UNIT=rule.unit,
            PARTS=parts, **sizes, **stages,
        )  # fmt: skip
        if self._group > 1:
            d_query, d_key = (d.unflatten(1, (-1, self._group)).sum(2) for d in (d_query, d_key))
        return d_query, d_key, d_value, d_log_decay, d_weight, None if d_skip is None else d_skip.sum(0)

    @property
    def _heads(self) -> int:
        return self.value.shape[1]

    @property
    def _group(self) -> int:
        return self.value.shape[1] // self.key.shape[1]

    @property
    def _k(self) -> int:
        return self.key.shape[2]

    @property
    def _v(self) -> int:
        return self.value.shape[2]

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.query.device)

    @staticmethod
    def _strides(*tensors: Tensor) -> list[int]:
        return [stride for x in tensors for stride in x.stride()[:2]]

    def _sizes(self, block_v: int) -> dict[str, Any]:
        precision = "ieee" if self.value.dtype == torch.float32 else "tf32"
        return {
            "C": CHUNK,
            "BLOCK_K": max(16, power_of_two(self._k)),
            "BLOCK_V": min(block_v, max(16, power_of_two(self._v))),
            "PRECISION": precision,
        }
