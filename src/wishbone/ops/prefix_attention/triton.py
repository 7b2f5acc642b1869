r"""Shared-prefix attention on CUDA in Triton kernels.

The forward pass is FlashAttention's (Dao 2023, arXiv 2307.08691): a block of queries walks over the blocks of keys that
it sees (`blocks.py`) with a running maximum m and sum l, so that scores never leave the chip:

    o = sum_k exp(s_qk - L_q) v_k,     L_q = m_q + log l_q,     s_qk = cap(scale q.k)

The backward pass recomputes P = exp(s - L) and uses dS = P (dO.v - delta) cap'(s) with delta_q = dO_q.o_q. Queries that
share a key head are summed in the block of keys that they read, so nothing is added across programs and results do not
depend on their order. The mask is one number a key: until where it is seen (`layout.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.prefix_attention.kernels import attend, key_gradient, query_gradient
from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.prefix_attention.tables import BlockKind, block_tables

ROW_MULTIPLE = 128
HEAD_DIMS = (16, 32, 64, 128, 256)
"""Head sizes of the kernels, as blocks must be powers of two; others are padded with zeros."""

TURING_SHARED_BYTES = 65_536
"""Shared memory of a program on Turing (T4), whose kernels hold six blocks beside each other instead of four."""


@dataclass(frozen=True)
class Tiles:
    """Block sizes of the three kernels: queries, keys, warps and pipeline stages of each."""

    forward: tuple[int, int, int, int]
    query_gradient: tuple[int, int, int, int]
    key_gradient: tuple[int, int, int, int]


def tiles_for(size: int, itemsize: int, shared_bytes: int) -> Tiles:
    """Return the block sizes that were fastest on an H200, with as many pipeline stages as shared memory holds.

    Measured with torch 2.11 on 8,192 tokens, 32 query and 8 key heads: forward 0.25 ms, backward 0.81 ms for heads of
    128 in bfloat16; FlexAttention takes 0.44 and 1.72 ms with the best options found for it.

    Args:
        size: numbers of a head.
        itemsize: bytes of a number.
        shared_bytes: shared memory that a program may use.
    """
    row, usable = size * itemsize, int(0.95 * shared_bytes)
    beside = 4 if shared_bytes > TURING_SHARED_BYTES else 6
    block = next((block for block in ((64, 32) if row <= 256 else (32,)) if beside * block * row <= usable), 16)
    blocks = (block, min(block, 32))

    def stages(most: int, held: int, streamed: int) -> int:
        return max(1, min(most, (usable - held) // streamed))

    square = (blocks[0], blocks[0], 4)
    narrow = (blocks[0], blocks[1], 4)
    return Tiles(
        forward=(*square, stages(3, blocks[0] * row, 2 * blocks[0] * row)),
        query_gradient=(*narrow, stages(2 if row > 128 else 3, 2 * blocks[0] * row, 2 * blocks[1] * row)),
        key_gradient=(*square, stages(2 if row > 128 else 3, 2 * blocks[0] * row, 2 * blocks[0] * row)),
    )


def prefix_attention_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Return attention over one packed row, [1, heads, tokens, value_dim]; arguments as `prefix_attention`.

    Args:
        tiles: block sizes; None is `tiles_for` this device.

    Raises:
        ValueError: if the row is not a multiple of 128 tokens, or a head has more than 256 numbers.
    """
    if layout.length % ROW_MULTIPLE:
        raise ValueError(
            f"a row of {layout.length} tokens is not a multiple of {ROW_MULTIPLE}: pad it with a document of its own"
        )
    needed, values = max(query.shape[-1], value.shape[-1]), value.shape[-1]
    size = next((size for size in HEAD_DIMS if size >= needed), None)
    if size is None:
        raise ValueError(f"a head of {needed} numbers is larger than {HEAD_DIMS[-1]}")
    query, key, value = (_with_zeros(tensor, size) for tensor in (query, key, value))
    if tiles is None:
        tiles = tiles_for(size, query.element_size(), _shared_bytes(query.device))
    out: Tensor = _PrefixAttention.apply(query, key, value, layout, scale, window, softcap, tiles)
    return out if size == values else out[..., :values]


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: PrefixLayout,
        scale: float,
        window: int | None,
        softcap: float | None,
        tiles: Tiles,
    ) -> Tensor:
        query, key, value = (_unit_stride(tensor) for tensor in (query, key, value))
        out = _tokens_first(query)
        _, heads, tokens, _ = query.shape
        lse = torch.empty(heads, tokens, device=query.device, dtype=torch.float32)
        rows, columns, warps, stages = tiles.forward
        attend[(tokens // rows, heads)](
            query,
            key,
            value,
            out,
            lse,
            *_lists(layout, window, rows, columns, query.device),
            *_tables(layout, query.device),
            *(stride for tensor in (query, key, value, out) for stride in tensor.stride()[1:3]),
            tokens,
            scale,
            softcap or 1.0,
            window or 0,
            heads // key.shape[1],
            **_options(query, window, softcap),
            ROWS=rows,
            COLUMNS=columns,
            num_warps=warps,
            num_stages=stages,
        )
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.settings = (layout, scale, window, softcap, tiles)
        return out

    @staticmethod
    def backward(ctx: Any, out_gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        layout, scale, window, softcap, tiles = ctx.settings
        out_gradient = _unit_stride(out_gradient)
        _, heads, tokens, _ = query.shape
        gradients = [_tokens_first(tensor) for tensor in (query, key, value)]
        delta = torch.empty_like(lse)
        inputs = (query, key, value, out_gradient)
        strides = [stride for tensor in (*inputs, out, *gradients) for stride in tensor.stride()[1:3]]
        numbers = (tokens, scale, softcap or 1.0, window or 0, heads // key.shape[1])
        tables = _tables(layout, query.device)
        options = _options(query, window, softcap)
        rows, columns, warps, stages = tiles.query_gradient
        query_gradient[(tokens // rows, heads)](
            *inputs,
            out,
            lse,
            delta,
            gradients[0],
            *_lists(layout, window, rows, columns, query.device),
            *tables,
            *strides[:12],
            *numbers,
            **options,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=warps,
            num_stages=stages,
        )
        rows, columns, warps, stages = tiles.key_gradient
        key_gradient[(tokens // columns, key.shape[1])](
            *inputs,
            lse,
            delta,
            *gradients[1:],
            *_lists(layout, window, rows, columns, query.device, by_keys=True),
            *tables,
            *strides[:8],
            *strides[12:],
            *numbers,
            **options,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=warps,
            num_stages=stages,
        )
        return (*gradients, None, None, None, None, None)


def _shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 2**20  # the interpreter has no limit
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)  # type: ignore[attr-defined]


def _with_zeros(tensor: Tensor, size: int) -> Tensor:
    """Pad heads to so many numbers; zeros change neither scores nor the other numbers of an output."""
    missing = size - tensor.shape[-1]
    return F.pad(tensor, (0, missing)) if missing else tensor


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _tokens_first(like: Tensor) -> Tensor:
    """An empty tensor [1, heads, tokens, size] whose memory has tokens first, as the layers around want it."""
    _, heads, tokens, size = like.shape
    return torch.empty(1, tokens, heads, size, device=like.device, dtype=like.dtype).transpose(1, 2)


def _tables(layout: PrefixLayout, device: torch.device) -> tuple[Tensor, ...]:
    return layout.token_tables(device).buffer.unbind()


def _lists(
    layout: PrefixLayout, window: int | None, rows: int, columns: int, device: torch.device, *, by_keys: bool = False
) -> tuple[Tensor | int, ...]:
    """How many blocks are full and how many are seen, which these are, and the width of that index."""
    tables = block_tables(layout, BlockKind(window, rows, columns, by_keys, device))
    return (*tables.parts(), tables.width)


def _options(query: Tensor, window: int | None, softcap: float | None) -> dict[str, Any]:
    return {
        "SIZE": query.shape[-1],
        "WINDOW": window is not None,
        "CAPPED": softcap is not None,
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
    }
