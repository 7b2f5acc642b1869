"""The definition: each stem is convolved with each of its branches as one sequence of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout

Convolve = Callable[[Tensor], Tensor]
"""A causal convolution of whole sequences, [sequences, channels, tokens] to the same shape, zeros before the first."""


def prefix_convolution_reference(x: Tensor, taps: int, layout: PrefixLayout, convolve: Convolve) -> Tensor:
    """Return the convolution of one packed row, [1, channels, tokens]; arguments as `prefix_convolution`."""
    parts: list[Tensor] = []
    for document in layout.documents:
        stem = x[:, :, document.start : document.stem_end]
        if stem.shape[2]:
            parts.append(convolve(stem))
        for start, end in document.branches():
            if end > start:
                sequence = torch.cat((stem, x[:, :, start:end]), dim=2)
                parts.append(convolve(sequence)[:, :, stem.shape[2] :])
    return torch.cat(parts, dim=2)
