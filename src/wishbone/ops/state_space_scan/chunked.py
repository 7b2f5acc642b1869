"""Mamba-2's scan in chunks, in plain PyTorch.

Within a chunk with G the running sum of dt A, and H the state before it,

    Y = tril(exp(G_i - G_j) C_i . B_j) (dt x) + exp(G) C H + D x
    H <- exp(G_last) H + (exp(G_last - G) B)^T (dt x)

so only the last line goes from chunk to chunk (`prefix_chunks.py`). Nothing but the inputs is kept for the backward
pass, which computes the chunks again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wishbone.ops.chunked_scan import has_kernels, kernels_are_right
from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.prefix_chunks import PrefixChunks, prefix_chunks, to_heads

CHUNK = 64
"""Tokens of a chunk. The result does not depend on it; families use up to 256, which keep four times the scores."""

TRIED = (0, 0.5, -0.2, 0, 0, 0)
"""Sizes of inputs with which kernels are tried."""


def state_space_scan(
    x: Tensor, dt: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor | None, layout: PrefixLayout
) -> Tensor:
    """Return the outputs of one packed row in which every branch continues its stem.

    It is computed in float32, in float64 for float64 inputs, also where autocast is on. On a CUDA device Triton kernels
    run it (`chunked_scan`) if they give what PyTorch gives there; they round factors of 16-bit inputs' products to
    TF32.

    Args:
        x: [1, tokens, heads, head_dim].
        dt: [1, tokens, heads]: the time step of each token, at least 0.
        rate: [heads]: A, at most 0.
        write, read: [1, tokens, groups, state_dim]: B and C; heads are a multiple of groups.
        skip: [heads]: D, or None.
        layout: where the documents lie; `layout.length` equals `tokens`.

    Returns:
        [1, tokens, heads, head_dim], dtype of the computation; that of `x` from kernels.

    Raises:
        ValueError: the row and its layout differ in length.
    """
    if x.shape[0] != 1 or x.shape[1] != layout.length:
        raise ValueError(f"an input of shape {tuple(x.shape)} is not one row of {layout.length} tokens")
    inputs = [one for one in (x, dt, rate, write, read, skip) if one is not None]
    if has_kernels(read, x) and kernels_are_right(
        "Mamba-2's scan", inputs, TRIED[: len(inputs)], _by_kernels, _in_pytorch
    ):
        return _by_kernels(inputs, layout)
    return _in_pytorch(inputs, layout)


def _by_kernels(inputs: Sequence[Tensor], layout: PrefixLayout) -> Tensor:
    from wishbone.ops.chunked_scan.triton import Rule, chunked_scan

    x, dt, rate, write, read, *skip = inputs
    own_skip = skip[0] if skip else None
    return chunked_scan(read[0], write[0], x[0], (dt * rate)[0], dt[0], layout, Rule(1.0), own_skip)[None]


def _in_pytorch(inputs: Sequence[Tensor], layout: PrefixLayout) -> Tensor:
    chunks = prefix_chunks(layout, CHUNK, inputs[0].device)
    if torch.is_grad_enabled() and any(one.requires_grad for one in inputs):
        out: Tensor = checkpoint(_row, chunks, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out
    return _row(chunks, *inputs)


def _row(
    chunks: PrefixChunks, x: Tensor, dt: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor | None = None
) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        own, step, b, c = (chunks.heads_first(one, dtype) for one in (x, dt, write, read))
        y = chunks.join(_outputs(chunks, own * step[..., None], step * rate.to(dtype)[:, None], b, c).transpose(1, 2))
        return y if skip is None else y + skip.to(dtype)[:, None] * x.to(dtype)


def _outputs(chunks: PrefixChunks, x: Tensor, g: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return outputs [chunks, heads, size, head_dim] of inputs [chunks, heads, size, ...] in their order."""
    heads = x.shape[1]
    total = g.cumsum(-1)
    later = torch.ones(chunks.size, chunks.size, dtype=torch.bool, device=x.device).triu(1)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(later, -torch.inf).exp()
    seen = to_heads(c @ b.transpose(-1, -2), heads) * decay
    b, c = to_heads(b, heads), to_heads(c, heads)
    added = (b * (total[..., -1:] - total).exp()[..., None]).transpose(-1, -2) @ x
    forgotten = total[..., -1].exp()[..., None, None]

    def advance(which: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        return state, torch.addcmul(added[which], state, forgotten[which])

    state = torch.cat(list(chunks.scan(x.new_zeros(1, heads, b.shape[-1], x.shape[-1]), advance)))
    return seen @ x + (c * total.exp()[..., None]) @ state
