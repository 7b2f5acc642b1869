"""The gradients of a chunked scan's inputs in Triton, once those of states and writes are known.

Names are those of `kernels.py`. T's gradient reaches A by dA = -T^T dT T^T. A program holds a chunk's [C, C] matrices
and reads keys and values in parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.chunked_scan.kernels import chunk_rows, decay_between, has_none, load_rows, load_scalars


@triton.jit
def input_gradients(
    query_ptr,
    key_ptr,
    value_ptr,
    g_ptr,
    beta_ptr,
    skip_ptr,
    d_out_ptr,
    inverse_ptr,
    new_ptr,
    d_new_ptr,
    d_read_ptr,
    d_kept_ptr,
    d_reading_ptr,
    d_last_ptr,
    bounds_ptr,
    d_query_ptr,
    d_key_ptr,
    d_value_ptr,
    d_g_ptr,
    d_beta_ptr,
    d_skip_ptr,
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
    DELTA: tl.constexpr,
    SKIP: tl.constexpr,
    UNIT: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of the inputs of one chunk and head; grid (chunks, heads).

    What a key divided by its length gives back, d - k (k . d), needs the sums k . d first: they are sums over pairs of
    tokens, so keys are read twice in parts and never held whole.

    Args:
        inverse_ptr: T [tokens, heads, C]; read if DELTA.
        d_read_ptr, d_kept_ptr, d_reading_ptr, d_last_ptr: of `state_gradients`, d_last in PARTS parts.
        d_query_ptr, d_key_ptr: [tokens, heads, K], of this head's share, written.
        d_value_ptr: [tokens, heads, V], written.
        d_g_ptr, d_beta_ptr: [tokens, heads], float32, written.
        d_skip_ptr: [chunks, heads], float32, written if SKIP.
    """
    chunk, head = tl.program_id(0), tl.program_id(1)
    if has_none(bounds_ptr, chunk):
        return
    rows, inside = chunk_rows(bounds_ptr, chunk, C)
    i = tl.arange(0, C)
    g = load_scalars(g_ptr, rows, inside, head, heads)
    total, last = tl.cumsum(g, 0), tl.sum(g, 0)
    beta = load_scalars(beta_ptr, rows, inside, head, heads)
    out = rows * heads + head
    kept, grown = tl.exp(last - total), beta * tl.exp(total)
    d_seen = tl.zeros((C, C), tl.float32)
    d_inverse = tl.zeros((C, C), tl.float32)
    d_beta = tl.zeros((C,), tl.float32)
    d_skip = 0.0
    if DELTA:
        # T transposed
        inverse = tl.load(inverse_ptr + out[None, :] * C + i[:, None], mask=inside[None, :], other=0.0)
    for first in range(0, V, BLOCK_V):
        at = first + tl.arange(0, BLOCK_V)
        d_out = load_rows(d_out_ptr, rows, inside, heads * V, head, V, V, at)
        u = load_rows(new_ptr, rows, inside, heads * V, head, V, V, at)
        d_u = load_rows(d_new_ptr, rows, inside, heads * V, head, V, V, at)
        v = load_rows(value_ptr, rows, inside, stride_value_token, head, stride_value_head, V, at)
        d_seen = tl.dot(d_out, tl.trans(u), d_seen, input_precision=PRECISION)
        if DELTA:
            d_inverse = tl.dot(d_u, tl.trans(v * beta[:, None]), d_inverse, input_precision=PRECISION)
            d_u = tl.dot(inverse, d_u, input_precision=PRECISION)
        d_beta += tl.sum(d_u * v, 1)
        d_v = d_u * beta[:, None]
        if SKIP:
            d_v += d_out * tl.load(skip_ptr + head)
            d_skip += tl.sum(tl.sum(d_out * v, 1), 0)
        d_value = d_value_ptr + out[:, None] * V + at[None, :]
        tl.store(d_value, d_v.to(d_value_ptr.dtype.element_ty), mask=inside[:, None] & (at < V)[None, :])
    query_head = query_ptr + (head // group) * stride_query_head
    key_head = key_ptr + (head // group) * stride_key_head
    query_inverse = tl.full((C,), 1.0, tl.float32)
    key_inverse = tl.full((C,), 1.0, tl.float32)
    if UNIT:
        query_inverse = inverse_length(query_head, rows, inside, stride_query_token, K, C, BLOCK_K)
        key_inverse = inverse_length(key_head, rows, inside, stride_key_token, K, C, BLOCK_K)
    query_key = tl.zeros((C, C), tl.float32)
    key_key = tl.zeros((C, C), tl.float32)
    of_read = tl.zeros((C,), tl.float32)
    of_kept = tl.zeros((C,), tl.float32)
    of_grown = tl.zeros((C,), tl.float32)
    for first in range(0, K, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        q = load_rows(query_head, rows, inside, stride_query_token, 0, 0, K, column) * query_inverse[:, None]
        k = load_rows(key_head, rows, inside, stride_key_token, 0, 0, K, column) * key_inverse[:, None]
        query_key = tl.dot(q, tl.trans(k), query_key, input_precision=PRECISION)
        of_read += tl.sum(load_rows(d_read_ptr, rows, inside, heads * K, head, K, K, column) * q, 1)
        of_kept += tl.sum(load_rows(d_kept_ptr, rows, inside, heads * K, head, K, K, column) * k, 1)
        if DELTA:
            key_key = tl.dot(k, tl.trans(k), key_key, input_precision=PRECISION)
            d_w = load_rows(d_reading_ptr, rows, inside, heads * K, head, K, K, column)
            d_inverse = tl.dot(d_w, tl.trans(k * grown[:, None]), d_inverse, input_precision=PRECISION)
            of_grown += tl.sum(tl.dot(inverse, d_w, input_precision=PRECISION) * k, 1)
    of_read, of_kept = of_read * tl.exp(total) * scale, of_kept * kept
    decay = decay_between(total, C)
    d_seen = d_seen * decay * scale
    by_pair = d_seen * query_key
    of_query = of_read + tl.sum(by_pair, 1)
    of_key = of_kept + tl.sum(by_pair, 0)
    d_total = of_query - of_key
    if DELTA:
        d_beta += of_grown * tl.exp(total)
        d_total += of_grown * grown
        of_key += of_grown * grown
        d_a = -tl.dot(tl.dot(inverse, d_inverse, input_precision=PRECISION), inverse, input_precision=PRECISION)
        d_a = tl.where(i[:, None] > i[None, :], d_a, 0.0) * decay
        by_pair = d_a * key_key
        d_beta += tl.sum(by_pair, 1)
        by_pair, d_a = by_pair * beta[:, None], d_a * beta[:, None]
        d_total += tl.sum(by_pair, 1) - tl.sum(by_pair, 0)
        of_key += tl.sum(by_pair, 1) + tl.sum(by_pair, 0)
        d_a += tl.trans(d_a)
    for first in range(0, K, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        q = load_rows(query_head, rows, inside, stride_query_token, 0, 0, K, column) * query_inverse[:, None]
        k = load_rows(key_head, rows, inside, stride_key_token, 0, 0, K, column) * key_inverse[:, None]
        d_q = load_rows(d_read_ptr, rows, inside, heads * K, head, K, K, column) * (tl.exp(total) * scale)[:, None]
        d_q = tl.dot(d_seen, k, d_q, input_precision=PRECISION)
        d_k = load_rows(d_kept_ptr, rows, inside, heads * K, head, K, K, column) * kept[:, None]
        d_k = tl.dot(tl.trans(d_seen), q, d_k, input_precision=PRECISION)
        if DELTA:
            d_w = load_rows(d_reading_ptr, rows, inside, heads * K, head, K, K, column)
            d_k += tl.dot(inverse, d_w, input_precision=PRECISION) * grown[:, None]
            d_k = tl.dot(d_a, k, d_k, input_precision=PRECISION)
        if UNIT:
            d_q = query_inverse[:, None] * (d_q - q * of_query[:, None])
            d_k = key_inverse[:, None] * (d_k - k * of_key[:, None])
        at = out[:, None] * K + column[None, :]
        exists = inside[:, None] & (column < K)[None, :]
        tl.store(d_query_ptr + at, d_q.to(d_query_ptr.dtype.element_ty), mask=exists)
        tl.store(d_key_ptr + at, d_k.to(d_key_ptr.dtype.element_ty), mask=exists)
    d_last = tl.sum(of_kept, 0)
    for part in tl.static_range(PARTS):
        d_last += tl.load(d_last_ptr + (chunk * heads + head) * PARTS + part) * tl.exp(last)
    d_g = tl.sum(d_total, 0) - tl.cumsum(d_total, 0) + d_total + d_last
    tl.store(d_g_ptr + out, d_g, mask=inside)
    tl.store(d_beta_ptr + out, d_beta, mask=inside)
    if SKIP:
        tl.store(d_skip_ptr + chunk * heads + head, d_skip)


@triton.jit
def inverse_length(ptr, rows, inside, stride_token, K, C: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return 1 / sqrt(|x|^2 + 1e-6) of keys or queries of one head, [C], read in parts."""
    squares = tl.zeros((C,), tl.float32)
    for first in range(0, K, BLOCK_K):
        x = load_rows(ptr, rows, inside, stride_token, 0, 0, K, first + tl.arange(0, BLOCK_K))
        squares += tl.sum(x * x, 1)
    return tl.rsqrt(squares + 1e-6)
