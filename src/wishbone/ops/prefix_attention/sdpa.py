"""Shared-prefix attention document by document, with PyTorch's scaled-dot-product attention.

The stem and the first branch are one causal sequence and need no mask. Every further branch is queried against
`[stem | branch]`, so no token is computed twice and nothing between documents is computed. Memory does not grow with
the square of the row: the largest mask is one branch by its sequence, or a stem and a branch by themselves where tokens
of the stem see each other. PyTorch has no fused kernel with soft-capping, sinks or slopes, so these take the dense form
within each sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.prefix_attention.reference import dense_attention, distance_bias


def prefix_attention_sdpa(
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
    layout.mark_as_sliced()
    if query.is_cuda:
        key, value = _one_head_a_query_head(query, key, value)
    options = scale, window, softcap, sinks, slopes
    out: list[Tensor] = []
    for document in layout.documents:
        first_end = document.branch_ends[0] if document.branch_ends else document.stem_end
        first = slice(document.start, first_end)
        if first_end > document.start:
            together = [
                (start - document.start, end - document.start)
                for start, end in layout.spans(window)
                if document.start <= start < document.stem_end
            ]
            out.append(_continue(query[:, :, first], key[:, :, first], value[:, :, first], *options, together))
        stem = slice(document.start, document.stem_end)
        for start, end in list(document.branches())[1:]:
            if end > start:
                keys = torch.cat((key[:, :, stem], key[:, :, start:end]), dim=2)
                values = torch.cat((value[:, :, stem], value[:, :, start:end]), dim=2)
                out.append(_continue(query[:, :, start:end], keys, values, *options))
    return torch.cat(out, dim=2)


def _one_head_a_query_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat key and value heads that several query heads share.

    On CUDA, PyTorch's memory-efficient kernel, the only one for masks and for heads above 256, takes no shared heads;
    it would fall back to the form that keeps all scores.
    """
    group = query.shape[1] // key.shape[1]
    if group == 1:
        return key, value
    return key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)


def _continue(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    slopes: Tensor | None,
    together: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Return causal attention of the last `query.shape[2]` tokens of a sequence over all of it.

    In spans that stand `together` every token sees the others, too; where there are any, all tokens are queries.
    """
    queries, keys = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if window is not None and window >= keys:
        window = None
    plain = softcap is None and sinks is None and slopes is None
    if plain and window is None and queries == keys and not together:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    for start, end in together:
        seen[start:end, start:end] = True
    if window is not None:
        seen = seen.triu(keys - queries - window + 1)
    if not plain:
        positions = torch.arange(keys, device=query.device)
        bias = None if slopes is None else distance_bias(slopes, positions[keys - queries :], positions)
        return dense_attention(query, key, value, seen, scale, softcap, sinks, bias)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale, enable_gqa=grouped)
