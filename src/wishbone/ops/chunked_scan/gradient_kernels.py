"""The backward pass of a chunked scan in Triton: gradients of writes, states and their factors.

Names are those of `kernels.py`; dX is the gradient of X. From the end of a branch to its beginning, then from the end
of a stem, where the gradients of its branches' first states are added up:

    du = scale tril(exp(G_i - G_j) q_i . k_j)^T do + exp(G_last - G) k dS
    dS <- exp(G_last) dS + scale (exp(G) q)^T do - W^T du        (W in the delta rule alone)

All other gradients then follow chunk by chunk (`input_kernels.py`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.chunked_scan.kernels import chunk_rows, decay_between, has_none, load_keys, load_rows, load_scalars


@triton.jit
def local_gradients(
    query_ptr,
    key_ptr,
    g_ptr,
    d_out_ptr,
    bounds_ptr,
    d_new_ptr,
    stride_query_token,
    stride_query_head,
    stride_key_token,
    stride_key_head,
    heads,
    group,
    scale,
    K,
    V,
    UNIT: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute what the outputs of a chunk give to du; grid (chunks, heads, V / BLOCK_V).

    Args:
        d_out_ptr: do [tokens, heads, V].
        d_new_ptr: du [tokens, heads, V], float32, written.
    """
    if has_none(bounds_ptr, tl.program_id(0)):
        return
    head = tl.program_id(1)
    rows, inside = chunk_rows(bounds_ptr, tl.program_id(0), C)
    column = tl.arange(0, BLOCK_K)
    at = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    q, _ = load_keys(query_ptr, rows, inside, stride_query_token, head // group, stride_query_head, K, column, UNIT)
    k, _ = load_keys(key_ptr, rows, inside, stride_key_token, head // group, stride_key_head, K, column, UNIT)
    total = tl.cumsum(load_scalars(g_ptr, rows, inside, head, heads), 0)
    seen = tl.dot(q, tl.trans(k), input_precision=PRECISION) * decay_between(total, C) * scale
    d_out = load_rows(d_out_ptr, rows, inside, heads * V, head, V, V, at)
    d_new = tl.dot(tl.trans(seen), d_out, input_precision=PRECISION)
    place = d_new_ptr + (rows * heads + head)[:, None] * V + at[None, :]
    tl.store(place, d_new, mask=inside[:, None] & (at < V)[None, :])


@triton.jit
def carry_gradients(
    query_ptr,
    key_ptr,
    g_ptr,
    d_out_ptr,
    reading_ptr,
    d_new_ptr,
    bounds_ptr,
    runs_ptr,
    branches_of_ptr,
    d_states_ptr,
    d_starts_ptr,
    stride_query_token,
    stride_query_head,
    stride_key_token,
    stride_key_head,
    heads,
    group,
    scale,
    stems,
    K,
    V,
    STEMS: tl.constexpr,
    DELTA: tl.constexpr,
    UNIT: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Carry dS of a part of V back through one stem or branch; grid (stems or branches, heads, V / BLOCK_V).

    Args:
        d_new_ptr: what `local_gradients` wrote; becomes du.
        branches_of_ptr: [stems, 2].
        d_states_ptr: dS after each chunk, [chunks, heads, K, V], written.
        d_starts_ptr: dS before each branch, [branches, heads, K, V]; written for branches, read for stems.
        STEMS: whether stems run, else branches.
    """
    segment, head = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, BLOCK_K)
    at = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    exists = (column < K)[:, None] & (at < V)[None, :]
    place = column[:, None] * V + at[None, :]
    d_state = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    run = segment
    if STEMS:
        branch = tl.load(branches_of_ptr + 2 * segment).to(tl.int64)
        for one in range(branch, branch + tl.load(branches_of_ptr + 2 * segment + 1)):
            start = d_starts_ptr + (one * heads + head) * K * V
            d_state += tl.load(start + place, mask=exists, other=0.0)
    else:
        run = segment + stems
    first = tl.load(runs_ptr + 2 * run).to(tl.int64)
    count = tl.load(runs_ptr + 2 * run + 1)
    for back in range(count):
        chunk = first + count - 1 - back
        tl.store(d_states_ptr + (chunk * heads + head) * K * V + place, d_state, mask=exists)
        rows, inside = chunk_rows(bounds_ptr, chunk, C)
        q, _ = load_keys(query_ptr, rows, inside, stride_query_token, head // group, stride_query_head, K, column, UNIT)
        k, _ = load_keys(key_ptr, rows, inside, stride_key_token, head // group, stride_key_head, K, column, UNIT)
        g = load_scalars(g_ptr, rows, inside, head, heads)
        total, last = tl.cumsum(g, 0), tl.sum(g, 0)
        new_at = d_new_ptr + (rows * heads + head)[:, None] * V + at[None, :]
        new_exists = inside[:, None] & (at < V)[None, :]
        d_new = tl.load(new_at, mask=new_exists, other=0.0)
        d_new = tl.dot(k * tl.exp(last - total)[:, None], d_state, d_new, input_precision=PRECISION)
        tl.store(new_at, d_new, mask=new_exists)
        d_out = load_rows(d_out_ptr, rows, inside, heads * V, head, V, V, at)
        read = q * (tl.exp(total) * scale)[:, None]
        d_state = tl.dot(tl.trans(read), d_out, d_state * tl.exp(last), input_precision=PRECISION)
        if DELTA:
            w = load_rows(reading_ptr, rows, inside, heads * K, head, K, K, column)
            d_state -= tl.dot(tl.trans(w), d_new, input_precision=PRECISION)
    if not STEMS:
        tl.store(d_starts_ptr + (segment.to(tl.int64) * heads + head) * K * V + place, d_state, mask=exists)


@triton.jit
def state_gradients(
    d_out_ptr,
    new_ptr,
    d_new_ptr,
    states_ptr,
    d_states_ptr,
    bounds_ptr,
    d_read_ptr,
    d_kept_ptr,
    d_reading_ptr,
    d_last_ptr,
    heads,
    K,
    V,
    DELTA: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute what a state gives to what it is multiplied with; grid (chunks, heads, K / BLOCK_K).

    Args:
        new_ptr, d_new_ptr: u and du [tokens, heads, V].
        states_ptr, d_states_ptr: S before and dS after each chunk, [chunks, heads, K, V].
        d_read_ptr: of exp(G) q, [tokens, heads, K], written.
        d_kept_ptr: of exp(G_last - G) k, [tokens, heads, K], written.
        d_reading_ptr: of W, [tokens, heads, K], written if DELTA.
        d_last_ptr: of exp(G_last), in parts, [chunks, heads, K / BLOCK_K], written.
    """
    chunk, head = tl.program_id(0), tl.program_id(1)
    if has_none(bounds_ptr, chunk):
        return
    rows, inside = chunk_rows(bounds_ptr, chunk, C)
    column = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    d_read = tl.zeros((C, BLOCK_K), tl.float32)
    d_kept = tl.zeros((C, BLOCK_K), tl.float32)
    d_reading = tl.zeros((C, BLOCK_K), tl.float32)
    d_last = 0.0
    for first in range(0, V, BLOCK_V):
        at = first + tl.arange(0, BLOCK_V)
        place = (chunk.to(tl.int64) * heads + head) * K * V + column[None, :] * V + at[:, None]  # transposed
        exists = (column < K)[None, :] & (at < V)[:, None]
        state = tl.load(states_ptr + place, mask=exists, other=0.0)
        d_state = tl.load(d_states_ptr + place, mask=exists, other=0.0)
        d_last += tl.sum(tl.sum(state * d_state, 1), 0)
        d_out = load_rows(d_out_ptr, rows, inside, heads * V, head, V, V, at)
        d_read = tl.dot(d_out, state, d_read, input_precision=PRECISION)
        u = load_rows(new_ptr, rows, inside, heads * V, head, V, V, at)
        d_kept = tl.dot(u, d_state, d_kept, input_precision=PRECISION)
        if DELTA:
            d_u = load_rows(d_new_ptr, rows, inside, heads * V, head, V, V, at)
            d_reading -= tl.dot(d_u, state, input_precision=PRECISION)
    out = (rows * heads + head)[:, None] * K + column[None, :]
    exists = inside[:, None] & (column < K)[None, :]
    tl.store(d_read_ptr + out, d_read, mask=exists)
    tl.store(d_kept_ptr + out, d_kept, mask=exists)
    if DELTA:
        tl.store(d_reading_ptr + out, d_reading, mask=exists)
    tl.store(d_last_ptr + (chunk * heads + head) * tl.num_programs(2) + tl.program_id(2), d_last)
