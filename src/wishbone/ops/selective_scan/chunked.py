"""Mamba's scan in chunks, in plain PyTorch, some channels at a time.

From zero at a chunk's beginning the states of all chunks are computed side by side, token by token. With G the running
sum of dt in the chunk and h the state before it, the state after a token is exp(G A) h more, so only the last one goes
from chunk to chunk (`prefix_chunks.py`).

A channel keeps state_dim numbers for each token. So channels run in parts, and only inputs are kept for the backward
pass, which computes a part again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.prefix_chunks import PrefixChunks, prefix_chunks

CHUNK = 32
"""Tokens of a chunk."""
MOST_ELEMENTS = 1 << 26
"""Elements of all tokens' states that are held at once."""


def selective_scan(
    x: Tensor, dt: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor | None, layout: PrefixLayout
) -> Tensor:
    """Return the outputs of one packed row in which every branch continues its stem.

    It is computed in float32, in float64 for float64 inputs, also where autocast is on.

    Args:
        x: [1, tokens, channels].
        dt: [1, tokens, channels]: the time step of each token, at least 0.
        rate: [channels, state_dim]: A, at most 0.
        write, read: [1, tokens, state_dim]: B and C.
        skip: [channels]: D, or None.
        layout: where the documents lie; `layout.length` equals `tokens`.

    Returns:
        [1, tokens, channels], dtype of the computation.

    Raises:
        ValueError: the row and its layout differ in length.
    """
    if x.shape[0] != 1 or x.shape[1] != layout.length:
        raise ValueError(f"an input of shape {tuple(x.shape)} is not one row of {layout.length} tokens")
    chunks = prefix_chunks(layout, CHUNK, x.device)
    dtype = torch.promote_types(x.dtype, torch.float32)
    size = max(1, MOST_ELEMENTS // max(1, chunks.count * CHUNK * rate.shape[1]))
    with torch.autocast(x.device.type, enabled=False):
        b, c = (chunks.cut(one).to(dtype) for one in (write, read))
        rows = (chunks.cut(one).to(dtype).split(size, -1) for one in (x, dt))
        parts = [
            checkpoint(_states_read, chunks, *one, b, c, use_reentrant=False, preserve_rng_state=False)
            for one in zip(*rows, rate.to(dtype).split(size), strict=True)
        ]
        y = chunks.join(torch.cat(parts, -1))
        return y if skip is None else y + skip.to(dtype) * x.to(dtype)


def _states_read(chunks: PrefixChunks, x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return C . h of some channels, [chunks, size, channels]."""
    written = (dt * x)[..., None] * b[:, :, None]
    total = dt.cumsum(1)[..., None] * rate
    decay = (dt[..., None] * rate).exp()
    states = [written[:, 0]]
    for t in range(1, chunks.size):
        states.append(torch.addcmul(written[:, t], decay[:, t], states[-1]))
    last, forgotten = states[-1], total[:, -1].exp()

    def advance(which: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        return state, torch.addcmul(last[which], state, forgotten[which])

    before = torch.cat(list(chunks.scan(last.new_zeros(1, *last.shape[1:]), advance)))
    all_states = torch.addcmul(torch.stack(states, 1), total.exp(), before[:, None])
    return torch.einsum("ntcs,nts->ntc", all_states, c)
