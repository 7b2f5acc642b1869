"""The definition of Mamba-2's scan in a row: token by token, each branch from the state at its stem's end."""

from __future__ import annotations

import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout


def state_space_scan_reference(
    x: Tensor, dt: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor | None, layout: PrefixLayout
) -> Tensor:
    """Return the outputs of one packed row, [1, tokens, heads, head_dim]; arguments as `state_space_scan`."""
    group = x.shape[2] // write.shape[2]
    write, read = (one.repeat_interleave(group, dim=2)[0] for one in (write, read))
    outputs = [torch.zeros_like(x[0, 0])] * layout.length

    def run(state: Tensor, tokens: range) -> Tensor:
        for t in tokens:
            step = dt[0, t]
            state = state * (step * rate).exp()[:, None, None]
            state = state + write[t][:, :, None] * (step[:, None] * x[0, t])[:, None, :]
            outputs[t] = (state * read[t][:, :, None]).sum(1)
            if skip is not None:
                outputs[t] = outputs[t] + skip[:, None] * x[0, t]
        return state

    for document in layout.documents:
        zero = x.new_zeros(x.shape[2], write.shape[2], x.shape[3])
        start = run(zero, range(document.start, document.stem_end))
        for branch in document.branches():
            run(start, range(*branch))
    return torch.stack(outputs)[None]
