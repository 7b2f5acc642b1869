r"""Shared-prefix attention on CUDA in Triton kernels.

The forward pass is FlashAttention's (Dao 2023, arXiv 2307.08691): a block of queries walks over the blocks of keys that
it sees (`blocks.py`) with a running maximum m and sum l, so that scores never leave the chip:

    o = sum_k exp(s_qk - L_q) v_k,     L_q = m_q + log l_q,     s_qk = cap(scale q.k)

The backward pass computes P = exp(s - L) again and uses dS = P (dO.v - delta) cap'(s) with delta_q = dO_q.o_q. Each
program of `key_gradient` sums over all queries that read its keys, so no program adds to the result of another and
results do not depend on their order. The mask of a key is one integer, `until` in `layout.py`. A sink z is one more
score without a value, so only L knows of it, and dz = - sum_q exp(z - L_q) delta_q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.prefix_attention.gradient_kernels import key_gradient, query_gradient
from wishbone.ops.prefix_attention.kernels import attend
from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.prefix_attention.tables import BlockKind, block_tables
from wishbone.ops.prefix_attention.tiles import Tile, Tiles, tiles_for

ROW_MULTIPLE = 128
HEAD_DIMS = (16, 32, 64, 128, 256)
"""Head dimensions of the kernels, as tiles must be powers of two; others are padded with zeros."""

LOG2_E = math.log2(math.e)


def prefix_attention_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    unrounded: Unrounded | None = None,
) -> Tensor:
    """Return attention over one packed row, [1, heads, tokens, value_dim]; arguments as `prefix_attention`.

    Args:
        unrounded: takes the output before it is rounded, or compares it with one that was; for heads whose dimension is
            one of `HEAD_DIMS` and that of their values.

    Raises:
        ValueError: if the row is not a multiple of 128 tokens, or the head dimension is above 256.
    """
    if layout.length % ROW_MULTIPLE:
        raise ValueError(
            f"a row of {layout.length} tokens is not a multiple of {ROW_MULTIPLE}: pad it with a document of its own"
        )
    needed, values = max(query.shape[-1], value.shape[-1]), value.shape[-1]
    size = next((size for size in HEAD_DIMS if size >= needed), None)
    if size is None:
        raise ValueError(f"a head dimension of {needed} is larger than {HEAD_DIMS[-1]}: use the backend 'sdpa'")
    query, key, value = (_with_zeros(tensor, size) for tensor in (query, key, value))
    group = query.shape[1] // key.shape[1]
    tiles = tiles_for(size, query.element_size(), group, *_limits(query.device))
    slopes = None if slopes is None else slopes.float().contiguous()
    out: Tensor = _PrefixAttention.apply(
        query, key, value, sinks, layout, scale, window, softcap, slopes, tiles, unrounded
    )
    return out if size == values else out[..., :values]


@dataclass
class Unrounded:
    """The reference's output in float32, and what the policy's differs by; the reference's call comes first.

    Attributes:
        exact: [1, heads, tokens, head_dim], float32; None before the reference's call.
        difference: likewise, in the dtype of the output; None before the policy's call.
    """

    exact: Tensor | None = None
    difference: Tensor | None = None


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        layout: PrefixLayout,
        scale: float,
        window: int | None,
        softcap: float | None,
        slopes: Tensor | None,
        tiles: Tiles,
        unrounded: Unrounded | None,
    ) -> Tensor:
        query, key, value = (_unit_stride(tensor) for tensor in (query, key, value))
        out = _tokens_first(query)
        _, heads, tokens, _ = query.shape
        lse = torch.empty(heads, tokens, device=query.device, dtype=torch.float32)
        _, stride_q_head, stride_q_token, _ = query.stride()
        _, stride_k_head, stride_k_token, _ = key.stride()
        _, stride_v_head, stride_v_token, _ = value.stride()
        _, stride_o_head, stride_o_token, _ = out.stride()
        sink_scores = None if sinks is None else sinks.float().contiguous()
        compares = unrounded is not None and unrounded.exact is not None
        if unrounded is not None and unrounded.exact is None:
            unrounded.exact = _tokens_first(query, torch.float32)
        elif unrounded is not None:
            unrounded.difference = _tokens_first(query)
        tile = tiles.forward
        attend[(heads // tile.heads, tokens // tile.tokens)](
            query,
            key,
            value,
            out,
            lse if unrounded is None else unrounded.exact,
            out if unrounded is None or not compares else unrounded.difference,
            lse,
            *_walks(layout, window, tile, query.device),
            *_until_and_position(layout, query.device),
            lse if slopes is None else slopes,
            lse if sink_scores is None else sink_scores,
            stride_q_head,
            stride_q_token,
            stride_k_head,
            stride_k_token,
            stride_v_head,
            stride_v_token,
            stride_o_head,
            stride_o_token,
            tokens,
            scale,
            softcap or 1.0,
            window or 0,
            heads // key.shape[1],
            **_options(query, window, softcap, slopes),
            SINK=sinks is not None,
            EXACT=unrounded is not None and not compares,
            CHANGE=compares,
            PACK=tile.heads,
            **_sizes(tile),
        )
        ctx.save_for_backward(query, key, value, out, lse, sinks, slopes)
        ctx.settings = (layout, scale, window, softcap, tiles)
        return out

    @staticmethod
    def backward(ctx: Any, out_gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, sinks, slopes = ctx.saved_tensors
        layout, scale, window, softcap, tiles = ctx.settings
        out_gradient = _unit_stride(out_gradient)
        _, heads, tokens, _ = query.shape
        dq, dk, dv = _tokens_first(query), _tokens_first(key), _tokens_first(value)
        delta = torch.empty_like(lse)
        _, stride_q_head, stride_q_token, _ = query.stride()
        _, stride_k_head, stride_k_token, _ = key.stride()
        _, stride_v_head, stride_v_token, _ = value.stride()
        _, stride_do_head, stride_do_token, _ = out_gradient.stride()
        _, stride_o_head, stride_o_token, _ = out.stride()
        _, stride_dq_head, stride_dq_token, _ = dq.stride()
        _, stride_dk_head, stride_dk_token, _ = dk.stride()
        _, stride_dv_head, stride_dv_token, _ = dv.stride()
        tables = (*_until_and_position(layout, query.device), lse if slopes is None else slopes)
        numbers = (tokens, scale, softcap or 1.0, window or 0, heads // key.shape[1])
        options = _options(query, window, softcap, slopes)
        tile = tiles.query_gradient
        query_gradient[(heads // tile.heads, tokens // tile.tokens)](
            query,
            key,
            value,
            out_gradient,
            out,
            lse,
            delta,
            dq,
            *_walks(layout, window, tile, query.device),
            *tables,
            stride_q_head,
            stride_q_token,
            stride_k_head,
            stride_k_token,
            stride_v_head,
            stride_v_token,
            stride_do_head,
            stride_do_token,
            stride_o_head,
            stride_o_token,
            stride_dq_head,
            stride_dq_token,
            *numbers,
            **options,
            PACK=tile.heads,
            **_sizes(tile),
        )
        tile = tiles.key_gradient
        key_gradient[(key.shape[1], tokens // tile.keys)](
            query,
            key,
            value,
            out_gradient,
            lse,
            delta,
            dk,
            dv,
            *_walks(layout, window, tile, query.device, by_keys=True),
            *tables,
            stride_q_head,
            stride_q_token,
            stride_k_head,
            stride_k_token,
            stride_v_head,
            stride_v_token,
            stride_do_head,
            stride_do_token,
            stride_dk_head,
            stride_dk_token,
            stride_dv_head,
            stride_dv_token,
            *numbers,
            **options,
            **_sizes(tile),
        )
        sink_gradient = None
        if sinks is not None and ctx.needs_input_grad[3]:
            shares = torch.exp2(sinks.float()[:, None] * LOG2_E - lse)
            sink_gradient = -(shares * delta).sum(1).to(sinks.dtype)
        return dq, dk, dv, sink_gradient, *(None,) * 7


def _limits(device: torch.device) -> tuple[int, tuple[int, int]]:
    """Return the shared memory of a program and the compute capability; the interpreter has no limit."""
    if device.type != "cuda":
        return 2**20, (0, 0)
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    return int(shared), torch.cuda.get_device_capability(device)


def _with_zeros(tensor: Tensor, size: int) -> Tensor:
    """Pad heads with zeros to this head dimension; scores and the other elements of an output stay what they are."""
    missing = size - tensor.shape[-1]
    return F.pad(tensor, (0, missing)) if missing else tensor


def _unit_stride(tensor: Tensor) -> Tensor:
    """Return the tensor with the elements of a head side by side in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _tokens_first(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty tensor [1, heads, tokens, size] whose memory has tokens first, as the layers around want it."""
    _, heads, tokens, size = like.shape
    return torch.empty(1, tokens, heads, size, device=like.device, dtype=dtype or like.dtype).transpose(1, 2)


def _until_and_position(layout: PrefixLayout, device: torch.device) -> tuple[Tensor, ...]:
    """Return the kernels' arguments `until_ptr` and `position_ptr`."""
    return layout.token_tables(device).buffer.unbind()


def _walks(
    layout: PrefixLayout, window: int | None, tile: Tile, device: torch.device, *, by_keys: bool = False
) -> tuple[Tensor | int, ...]:
    """Return the kernels' arguments `order_ptr`, `full_ptr`, `count_ptr`, `index_ptr` and `index_width`."""
    tables = block_tables(layout, BlockKind(window, tile.tokens, tile.keys, by_keys, device))
    return (*tables.parts(), tables.width)


def _sizes(tile: Tile) -> dict[str, int]:
    """Return the constants of a kernel that depend on its tile."""
    sizes = {"TOKENS": tile.tokens, "COLUMNS": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}
    return sizes if tile.registers is None else sizes | {"maxnreg": tile.registers}


def _options(query: Tensor, window: int | None, softcap: float | None, slopes: Tensor | None) -> dict[str, Any]:
    """Return the constants of the kernels that do not depend on tiles."""
    return {
        "SIZE": query.shape[-1],
        "WINDOW": window is not None,
        "CAPPED": softcap is not None,
        "SLOPED": slopes is not None,
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
    }
