"""The gated delta rule in chunks of tokens, in plain PyTorch.

Within a chunk with G the running sum of the log-decay g, the writes depend on each other: token i writes
u_i = beta_i (v_i - what it reads), and reads what j < i wrote. So with

    A_ij = beta_i exp(G_i - G_j) k_i . k_j   for j < i,        T = (1 + A)^-1,

and S the state before the chunk, all writes and outputs are products of matrices:

    U = T (beta v) - T (beta exp(G) k) S
    O = (exp(G) q) S + tril(exp(G_i - G_j) q_i . k_j) U
    S <- exp(G_last) S + (exp(G_last - G) k)^T U

With a decay for each element of the key, exp(G_i - G_j) stands inside the sum of k_i . k_j, which then is no product of
matrices: chunks are shorter there.

Only the last line and U go from chunk to chunk (`prefix_chunks.py`). Nothing but the inputs is kept for the backward
pass, which computes the chunks again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wishbone.ops.chunked_scan import has_kernels, kernels_are_right
from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.prefix_chunks import PrefixChunks, prefix_chunks, to_heads

CHUNK = 64
"""Tokens of a chunk."""
TRIED = (0, 0, 0, -0.1, 0.5)
"""Sizes of inputs with which kernels are tried."""
CHUNK_BY_ELEMENT = 16
"""Tokens of a chunk where each element of the key has a decay of its own; scores take as many numbers as keys then."""


def gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor, layout: PrefixLayout, *, unit: bool
) -> Tensor:
    """Return the outputs of one packed row in which every branch continues its stem.

    It is computed in float32, in float64 for float64 inputs, also where autocast is on. On a CUDA device Triton kernels
    run it (`chunked_scan`) if each head has one decay and they give what PyTorch gives there; they round factors of
    16-bit inputs' products to TF32.

    Args:
        query, key: [1, tokens, key_heads, key_dim]; queries are divided by the root of key_dim.
        value: [1, tokens, heads, value_dim]; heads are a multiple of key_heads.
        log_decay: [1, tokens, heads] or [1, tokens, heads, key_dim]: g, at most 0.
        beta: [1, tokens, heads]: how much of what is read is replaced.
        layout: where the documents lie; `layout.length` equals `tokens`.
        unit: divide queries and keys by their length.

    Returns:
        [1, tokens, heads, value_dim], dtype of `query`.

    Raises:
        ValueError: the row and its layout differ in length.
    """
    if query.shape[0] != 1 or query.shape[1] != layout.length:
        raise ValueError(f"a query of shape {tuple(query.shape)} is not one row of {layout.length} tokens")
    inputs = query, key, value, log_decay, beta
    if log_decay.ndim == 3 and has_kernels(query, value):
        in_pytorch = functools.partial(_in_pytorch, unit=unit)
        by_kernels = functools.partial(_by_kernels, unit=unit)
        if kernels_are_right(f"the gated delta rule (unit keys: {unit})", inputs, TRIED, by_kernels, in_pytorch):
            return by_kernels(inputs, layout)
    return _in_pytorch(inputs, layout, unit=unit)


def _by_kernels(inputs: Sequence[Tensor], layout: PrefixLayout, *, unit: bool) -> Tensor:
    from wishbone.ops.chunked_scan.triton import Rule, chunked_scan

    query, key, value, log_decay, beta = (x[0] for x in inputs)
    rule = Rule(query.shape[-1] ** -0.5, delta=True, unit=unit)
    return chunked_scan(query, key, value, log_decay, beta, layout, rule)[None].to(query.dtype)


def _in_pytorch(inputs: Sequence[Tensor], layout: PrefixLayout, *, unit: bool) -> Tensor:
    chunks = prefix_chunks(layout, CHUNK if inputs[3].ndim == 3 else CHUNK_BY_ELEMENT, inputs[0].device)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        out: Tensor = checkpoint(_row, chunks, unit, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out
    return _row(chunks, unit, *inputs)


def _row(
    chunks: PrefixChunks, unit: bool, query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor
) -> Tensor:
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        q, k, v, g, b = (chunks.heads_first(x, dtype) for x in (query, key, value, log_decay, beta))
        if unit:
            q, k = (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k))
        g = g[..., None] if log_decay.ndim == 3 else g
        return chunks.join(_outputs(chunks, q * q.shape[-1] ** -0.5, k, v, g, b[..., None]).transpose(1, 2)).to(
            query.dtype
        )


def _outputs(chunks: PrefixChunks, q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """Return outputs [chunks, heads, size, value_dim] of inputs [chunks, heads, size, ...] in their order."""
    heads = v.shape[1]
    total = g.cumsum(-2)
    later = torch.ones(chunks.size, chunks.size, dtype=torch.bool, device=q.device).triu(1)[..., None]
    decay = (total[..., :, None, :] - total[..., None, :, :]).masked_fill(later, -torch.inf).exp()
    if g.shape[-1] == 1:
        keys_seen, seen = (to_heads(x @ k.transpose(-1, -2), heads) * decay[..., 0] for x in (k, q))
    else:
        faded = decay * to_heads(k, heads)[..., None, :, :]
        keys_seen, seen = (torch.einsum("nhid,nhijd->nhij", to_heads(x, heads), faded) for x in (k, q))
    eye = torch.eye(chunks.size, dtype=q.dtype, device=q.device)
    system = (keys_seen * b).tril(-1) + eye
    inverse = torch.linalg.solve_triangular(system, eye, upper=False, unitriangular=True)
    q, k = to_heads(q, heads), to_heads(k, heads)
    written = inverse @ (v * b)
    reading = inverse @ (k * (b * total.exp()))
    kept = (k * (total[..., -1:, :] - total).exp()).transpose(-1, -2)
    forgotten = total[..., -1, :].exp()[..., None]

    def advance(which: slice, state: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        new = written[which] - reading[which] @ state
        return (new, state), state * forgotten[which] + kept[which] @ new

    found = list(chunks.scan(q.new_zeros(1, heads, k.shape[-1], v.shape[-1]), advance))
    new, state = (torch.cat(parts) for parts in zip(*found, strict=True))
    return (q * total.exp()) @ state + seen @ new
