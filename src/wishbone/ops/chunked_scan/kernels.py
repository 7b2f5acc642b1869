"""The forward pass of a chunked scan in Triton: writes that depend on each other, states, outputs.

With G the running sum of the log-decay g in a chunk, k and q its keys and queries, S the state before it:

    delta rule:  T = (1 + A)^-1,  A_ij = beta_i exp(G_i - G_j) k_i . k_j for j < i
                 U = T (beta v),  W = T (beta exp(G) k),  u = U - W S
    elsewhere:   u = beta v
    o = scale exp(G) q S + scale tril(exp(G_i - G_j) q_i . k_j) u + skip v
    S <- exp(G_last) S + (exp(G_last - G) k)^T u

Tokens that fill up a chunk have g = 0 and zeros elsewhere, which leave a state as it is. Names of sizes: C tokens of a
chunk, K elements of a key, V of a value; BLOCK_K covers K, BLOCK_V is a part of V.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def chunk_rows(bounds_ptr, chunk, C: tl.constexpr):
    """Return the tokens of a chunk [C], int64, and which of them exist."""
    start = tl.load(bounds_ptr + 2 * chunk)
    rows = start + tl.arange(0, C)
    return rows.to(tl.int64), rows < tl.load(bounds_ptr + 2 * chunk + 1)


@triton.jit
def has_none(bounds_ptr, chunk):
    """Return whether a chunk has no tokens, as those have that a recorded row has room for."""
    return tl.load(bounds_ptr + 2 * chunk) >= tl.load(bounds_ptr + 2 * chunk + 1)


@triton.jit
def load_rows(ptr, rows, inside, stride_token, head, stride_head, width, column):
    """Return rows of one head, [C, columns], in float32; 0 where there is none."""
    at = ptr + rows[:, None] * stride_token + head * stride_head + column[None, :]
    return tl.load(at, mask=inside[:, None] & (column < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def load_keys(ptr, rows, inside, stride_token, head, stride_head, width, column, UNIT: tl.constexpr):
    """Return keys or queries of one head, [C, BLOCK_K], divided by their length if UNIT; and 1 over that length."""
    x = load_rows(ptr, rows, inside, stride_token, head, stride_head, width, column)
    inverse = tl.rsqrt(tl.sum(x * x, 1) + 1e-6)
    if UNIT:
        x = x * inverse[:, None]
    return x, inverse


@triton.jit
def load_scalars(ptr, rows, inside, head, heads):
    """Return one number a token of one head, [C], of a tensor [tokens, heads]; 0 where there is no token."""
    return tl.load(ptr + rows * heads + head, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def decay_between(total, C: tl.constexpr):
    """Return exp(G_i - G_j) for j <= i, else 0, [C, C]."""
    i = tl.arange(0, C)
    return tl.exp(tl.where(i[:, None] >= i[None, :], total[:, None] - total[None, :], float("-inf")))


@triton.jit
def solve_chunks(
    key_ptr,
    value_ptr,
    g_ptr,
    beta_ptr,
    bounds_ptr,
    inverse_ptr,
    reading_ptr,
    new_ptr,
    stride_key_token,
    stride_key_head,
    stride_value_token,
    stride_value_head,
    heads,
    group,
    K,
    V,
    UNIT: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute T, W and U of one chunk and head; grid (chunks, heads).

    Args:
        key_ptr: [tokens, heads / group, K]; value_ptr: [tokens, heads, V]; elements of a head lie side by side.
        g_ptr, beta_ptr: [tokens, heads], float32.
        bounds_ptr: [chunks, 2]: the tokens of each chunk.
        inverse_ptr: T [tokens, heads, C], written.
        reading_ptr: W [tokens, heads, K], written.
        new_ptr: U [tokens, heads, V], written.
        PRECISION: of products.
    """
    if has_none(bounds_ptr, tl.program_id(0)):
        return
    head = tl.program_id(1)
    rows, inside = chunk_rows(bounds_ptr, tl.program_id(0), C)
    column = tl.arange(0, BLOCK_K)
    k, _ = load_keys(key_ptr, rows, inside, stride_key_token, head // group, stride_key_head, K, column, UNIT)
    total = tl.cumsum(load_scalars(g_ptr, rows, inside, head, heads), 0)
    beta = load_scalars(beta_ptr, rows, inside, head, heads)
    i = tl.arange(0, C)
    earlier = i[:, None] < i[None, :]  # the matrix is held with rows j and columns i, so that row i is read by columns
    fading = tl.exp(tl.where(earlier, total[None, :] - total[:, None], float("-inf")))
    a = tl.dot(k, tl.trans(k), input_precision=PRECISION) * fading * beta[None, :]
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for row in range(1, C):
        of_row = tl.sum(tl.where(i[None, :] == row, a, 0.0), 1)
        found = tl.sum(of_row[:, None] * inverse, 0)
        inverse = tl.where(i[:, None] == row, inverse - found[None, :], inverse)
    out = rows * heads + head
    tl.store(inverse_ptr + out[:, None] * C + i[None, :], inverse, mask=inside[:, None])
    w = tl.dot(inverse, k * (beta * tl.exp(total))[:, None], input_precision=PRECISION)
    tl.store(reading_ptr + out[:, None] * K + column[None, :], w, mask=inside[:, None] & (column < K)[None, :])
    for first in range(0, V, BLOCK_V):
        at = first + tl.arange(0, BLOCK_V)
        v = load_rows(value_ptr, rows, inside, stride_value_token, head, stride_value_head, V, at)
        u = tl.dot(inverse, v * beta[:, None], input_precision=PRECISION)
        tl.store(new_ptr + out[:, None] * V + at[None, :], u, mask=inside[:, None] & (at < V)[None, :])


@triton.jit
def carry_states(
    key_ptr,
    value_ptr,
    g_ptr,
    beta_ptr,
    reading_ptr,
    new_ptr,
    bounds_ptr,
    runs_ptr,
    stem_of_ptr,
    states_ptr,
    ends_ptr,
    stride_key_token,
    stride_key_head,
    stride_value_token,
    stride_value_head,
    heads,
    group,
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
    """Carry the state of a part of V through one stem or branch; grid (stems or branches, heads, V / BLOCK_V).

    Args:
        reading_ptr: W; read if DELTA.
        new_ptr: U [tokens, heads, V], becomes u.
        runs_ptr: [stems + branches, 2]; stem_of_ptr: [branches].
        states_ptr: S before each chunk, [chunks, heads, K, V], written.
        ends_ptr: S at the end of each stem, [stems, heads, K, V]; written for stems, read for branches.
        STEMS: whether stems run, else branches.
    """
    segment, head = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, BLOCK_K)
    at = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    exists = (column < K)[:, None] & (at < V)[None, :]
    place = column[:, None] * V + at[None, :]
    state = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    run = segment
    if not STEMS:
        run = segment + stems
        stem = tl.load(stem_of_ptr + segment)
        if stem >= 0:
            state = tl.load(ends_ptr + (stem.to(tl.int64) * heads + head) * K * V + place, mask=exists, other=0.0)
    first = tl.load(runs_ptr + 2 * run).to(tl.int64)
    for chunk in range(first, first + tl.load(runs_ptr + 2 * run + 1)):
        tl.store(states_ptr + (chunk * heads + head) * K * V + place, state, mask=exists)
        rows, inside = chunk_rows(bounds_ptr, chunk, C)
        k, _ = load_keys(key_ptr, rows, inside, stride_key_token, head // group, stride_key_head, K, column, UNIT)
        g = load_scalars(g_ptr, rows, inside, head, heads)
        total, last = tl.cumsum(g, 0), tl.sum(g, 0)
        new_at = new_ptr + (rows * heads + head)[:, None] * V + at[None, :]
        new_exists = inside[:, None] & (at < V)[None, :]
        if DELTA:
            w = load_rows(reading_ptr, rows, inside, heads * K, head, K, K, column)
            u = tl.load(new_at, mask=new_exists, other=0.0) - tl.dot(w, state, input_precision=PRECISION)
        else:
            v = load_rows(value_ptr, rows, inside, stride_value_token, head, stride_value_head, V, at)
            u = v * load_scalars(beta_ptr, rows, inside, head, heads)[:, None]
        tl.store(new_at, u, mask=new_exists)
        kept = k * tl.exp(last - total)[:, None]
        state = state * tl.exp(last) + tl.dot(tl.trans(kept), u, input_precision=PRECISION)
    if STEMS:
        tl.store(ends_ptr + (segment.to(tl.int64) * heads + head) * K * V + place, state, mask=exists)


@triton.jit
def chunk_outputs(
    query_ptr,
    key_ptr,
    value_ptr,
    g_ptr,
    skip_ptr,
    new_ptr,
    states_ptr,
    bounds_ptr,
    out_ptr,
    stride_query_token,
    stride_query_head,
    stride_key_token,
    stride_key_head,
    stride_value_token,
    stride_value_head,
    heads,
    group,
    scale,
    K,
    V,
    SKIP: tl.constexpr,
    UNIT: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the outputs of one chunk, head and part of V; grid (chunks, heads, V / BLOCK_V).

    Args:
        skip_ptr: [heads], float32; read if SKIP.
        new_ptr: u [tokens, heads, V].
        out_ptr: [tokens, heads, V], written in its dtype.
    """
    chunk, head = tl.program_id(0), tl.program_id(1)
    if has_none(bounds_ptr, chunk):
        return
    rows, inside = chunk_rows(bounds_ptr, chunk, C)
    column = tl.arange(0, BLOCK_K)
    at = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    q, _ = load_keys(query_ptr, rows, inside, stride_query_token, head // group, stride_query_head, K, column, UNIT)
    k, _ = load_keys(key_ptr, rows, inside, stride_key_token, head // group, stride_key_head, K, column, UNIT)
    total = tl.cumsum(load_scalars(g_ptr, rows, inside, head, heads), 0)
    seen = tl.dot(q, tl.trans(k), input_precision=PRECISION) * decay_between(total, C)
    u = load_rows(new_ptr, rows, inside, heads * V, head, V, V, at)
    state_at = states_ptr + (chunk.to(tl.int64) * heads + head) * K * V + column[:, None] * V + at[None, :]
    state = tl.load(state_at, mask=(column < K)[:, None] & (at < V)[None, :], other=0.0)
    out = tl.dot(q * tl.exp(total)[:, None], state, input_precision=PRECISION)
    out = tl.dot(seen, u, out, input_precision=PRECISION) * scale
    if SKIP:
        v = load_rows(value_ptr, rows, inside, stride_value_token, head, stride_value_head, V, at)
        out += v * tl.load(skip_ptr + head)
    place = out_ptr + (rows * heads + head)[:, None] * V + at[None, :]
    tl.store(place, out.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (at < V)[None, :])
