"""The definition of Mamba's scan in a row: token by token, each branch from the state at its stem's end."""

from __future__ import annotations

import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout


def selective_scan_reference(
    x: Tensor, dt: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor | None, layout: PrefixLayout
) -> Tensor:
    """Return the outputs of one packed row, [1, tokens, channels]; arguments as `selective_scan`."""
    outputs = [torch.zeros_like(x[0, 0])] * layout.length

    def run(state: Tensor, tokens: range) -> Tensor:
        for t in tokens:
            step = dt[0, t, :, None]
            state = (step * rate).exp() * state + step * write[0, t] * x[0, t, :, None]
            outputs[t] = state @ read[0, t]
            if skip is not None:
                outputs[t] = outputs[t] + skip * x[0, t]
        return state

    for document in layout.documents:
        start = run(torch.zeros_like(rate), range(document.start, document.stem_end))
        for branch in document.branches():
            run(start, range(*branch))
    return torch.stack(outputs)[None]
