r"""Shared-prefix attention as a dense masked softmax: the definition that the fast backends are tested against.

    out_q = sum_k softmax_k( cap(scale * q.k) + mask(q, k) ) v_k,     cap(s) = c tanh(s / c)  or  s

Memory and time grow with the square of the row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Return masked softmax attention with the mask `seen`.

    Args:
        query: [batch, heads, queries, head_dim].
        key: [batch, key_value_heads, keys, head_dim]; if there are fewer heads than of the query, groups of query heads
            share one.
        value: [batch, key_value_heads, keys, value_dim].
        seen: bool [queries, keys].
        scale: factor on the scores, usually head_dim ** -0.5.
        softcap: bound c of the tanh soft-capping of Gemma 2 (arXiv 2408.00118), or None.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(-2, -1)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    at_least_float32 = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=at_least_float32).to(value.dtype) @ value


def prefix_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return attention over one packed row, [1, heads, tokens, value_dim]; arguments as `prefix_attention`."""
    tokens = torch.arange(layout.length, device=query.device)
    tables = layout.token_tables(query.device)
    seen = layout.visible(tokens[:, None], tokens[None, :], tables, window)
    return dense_attention(query, key, value, seen, scale, softcap)
