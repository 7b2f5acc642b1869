r"""Shared-prefix attention as a dense masked softmax: the definition that the fast backends are tested against.

    out_q = sum_k softmax_k( cap(scale * q.k) + a (pos_k - pos_q) + mask(q, k) ) v_k,     cap(s) = c tanh(s / c)  or  s

with a slope a for each head (ALiBi; Press et al. 2022, arXiv 2108.12409) or none. A head may also have a sink: one more
score of the softmax, which has no value, so that weights add up to less than 1 (Xiao et al. 2024, arXiv 2309.17453; a
learned one as in gpt-oss, arXiv 2508.10925). Memory and time grow with the square of the row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
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
        sinks: [heads], or None.
        bias: [heads, queries, keys], added to the scores, or None.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(-2, -1)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    at_least_float32 = torch.promote_types(scores.dtype, torch.float32)
    if bias is not None:
        scores = scores.to(at_least_float32) + bias
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        column = sinks.to(at_least_float32).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores.to(at_least_float32), column), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=at_least_float32)
    return (weights if sinks is None else weights[..., :-1]).to(value.dtype) @ value


def distance_bias(slopes: Tensor, query_position: Tensor, key_position: Tensor) -> Tensor:
    """Return a (pos_k - pos_q), [heads, queries, keys], float32 or better.

    Args:
        slopes: a [heads].
        query_position: [queries].
        key_position: [keys].
    """
    distance = key_position[None, :] - query_position[:, None]
    precise = torch.promote_types(slopes.dtype, torch.float32)
    return slopes.to(precise)[:, None, None] * distance.to(precise)


def prefix_attention_reference(
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
) -> Tensor:
    """Return attention over one packed row, [1, heads, tokens, value_dim]; arguments as `prefix_attention`."""
    tokens = torch.arange(layout.length, device=query.device)
    tables = layout.token_tables(query.device)
    seen = layout.visible(tokens[:, None], tokens[None, :], tables, window)
    bias = None if slopes is None else distance_bias(slopes, tables.position, tables.position)
    return dense_attention(query, key, value, seen, scale, softcap, sinks, bias)
