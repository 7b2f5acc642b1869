"""The definition of the gated delta rule in a row: token by token, each branch from the state at its stem's end."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout


def gated_delta_rule_reference(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor, layout: PrefixLayout, *, unit: bool
) -> Tensor:
    """Return the outputs of one packed row, [1, tokens, heads, value_dim]; arguments as `gated_delta_rule`."""
    group = value.shape[2] // key.shape[2]
    query, key = (x.repeat_interleave(group, dim=2)[0] for x in (query, key))
    if unit:
        query, key = (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (query, key))
    query = query * query.shape[-1] ** -0.5
    outputs = [torch.zeros_like(value[0, 0])] * layout.length

    def run(state: Tensor, tokens: range) -> Tensor:
        for t in tokens:
            state = state * log_decay[0, t].exp().view(*state.shape[:1], -1, 1)
            read = torch.einsum("hkv,hk->hv", state, key[t])
            state = state + torch.einsum("hk,hv->hkv", key[t], beta[0, t, :, None] * (value[0, t] - read))
            outputs[t] = torch.einsum("hkv,hk->hv", state, query[t])
        return state

    for stem, branches in _segments(layout):
        start = run(value.new_zeros(value.shape[2], key.shape[2], value.shape[3]), stem)
        for branch in branches:
            run(start, branch)
    return torch.stack(outputs)[None]


def _segments(layout: PrefixLayout) -> Iterator[tuple[range, list[range]]]:
    for document in layout.documents:
        yield range(document.start, document.stem_end), [range(*branch) for branch in document.branches()]
