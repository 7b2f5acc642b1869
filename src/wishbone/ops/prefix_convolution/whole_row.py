"""The fast form: convolves the row as if it were one sequence, then the first tokens of segments again.

Only the first k - 1 tokens of a segment read inputs of another one. So these tokens, each behind the k - 1 inputs that
belong before it, are convolved once more as a small batch and written over what the whole row gave. The convolution
itself is the caller's: that of a kernel library or of PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.prefix_convolution.reference import Convolve
from wishbone.ops.to_device import to_device


def prefix_convolution(x: Tensor, taps: int, layout: PrefixLayout, convolve: Convolve) -> Tensor:
    """Return the causal convolution of one packed row in which every branch continues its stem.

    Args:
        x: [1, channels, tokens].
        taps: inputs that one output reads, the token's own and those before it.
        layout: where the documents lie; `layout.length` equals `tokens`.
        convolve: the convolution of whole sequences, with what follows it token by token (bias, activation).

    Returns:
        [1, channels, tokens], as `convolve` returns it.

    Raises:
        ValueError: the row and its layout differ in length.
    """
    if x.shape[0] != 1 or x.shape[2] != layout.length:
        raise ValueError(f"an input of shape {tuple(x.shape)} is not one row of {layout.length} tokens")
    out = convolve(x)
    heads = _heads(layout, taps - 1, x.device)
    if heads is None:
        return out
    tokens = x[0].T
    before = tokens.index_select(0, heads.before) * heads.is_before[:, None]
    first = tokens.index_select(0, heads.first) * heads.is_first[:, None]
    windows = torch.cat([half.view(-1, taps - 1, half.shape[1]) for half in (before, first)], dim=1)
    again = convolve(windows.transpose(1, 2))[:, :, taps - 1 :].transpose(1, 2)
    written = again.flatten(0, 1).index_select(0, heads.kept)
    return out[0].T.index_copy(0, heads.places, written).T[None]


@dataclass(frozen=True)
class _Heads:
    """The first tokens of segments, k - 1 of each, and the inputs before them.

    Attributes:
        before, first: [segments * (k - 1)], int64: tokens of the row; 0 where there is none.
        is_before, is_first: [segments * (k - 1)], bool: whether there is one.
        kept: [heads], int64: where `is_first`.
        places: [heads], int64: `first` there.
    """

    before: Tensor
    is_before: Tensor
    first: Tensor
    is_first: Tensor
    kept: Tensor
    places: Tensor


def _heads(layout: PrefixLayout, width: int, device: torch.device) -> _Heads | None:
    """Return the heads of all segments but the one at the row's beginning, made once; None where there is none."""
    key = ("convolution heads", width, device)
    if key not in layout._cache:
        segments = [s for s in layout.segments() if s[1] > s[0] > 0]
        layout._cache[key] = _tables(segments, width, device) if segments and width else None
    heads = layout._cache[key]
    assert heads is None or isinstance(heads, _Heads)
    return heads


def _tables(segments: list[tuple[int, int, int, int]], width: int, device: torch.device) -> _Heads:
    start, end, stem_start, stem_end = np.array(segments, dtype=np.int64).T[:, :, None]
    before = (stem_end - width + np.arange(width)).ravel()
    first = (start + np.arange(width)).ravel()
    is_before, is_first = before >= stem_start.repeat(width), first < end.repeat(width)
    kept = np.flatnonzero(is_first)
    columns = (before * is_before, is_before, first * is_first, is_first, kept, first[kept])
    return _Heads(*(to_device(torch.from_numpy(column), device) for column in columns))
