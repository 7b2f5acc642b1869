"""Triton kernels of shared-prefix attention: what a block of queries, or of keys, computes; `triton.py` launches them.

Each kernel walks over the blocks in which something is seen, those that are seen throughout first. In the others key n
is seen by query m where n <= m < until_n, one comparison of unsigned numbers: m - n < until_n - n. Row lengths are
multiples of every block size, so that no load needs a guard. Which block comes next is loaded one block ahead, so that
its keys are not waited for. Log-sum-exps are in units of log2.
"""

from __future__ import annotations

import triton
import triton.language as tl

ANY_NUMBER = ["index_width"]
"""Arguments that change with the row: what divides them makes no kernel of its own."""

UNSEEN = tl.constexpr(-(2.0**100))
"""Score of a key that is not seen: a power of two, so that its products are exact, whether fused with a sum or not."""


@triton.jit
def _capped_tanh(x):
    """tanh, without a library: 1 - 2 / (e^(2x) + 1)."""
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def _masked(s, m, n, until, position_ptr, window, WINDOW: tl.constexpr):
    """`PrefixLayout.visible`: UNSEEN in place of the others; m, n and until are shaped so that they broadcast."""
    seen = (m - n).to(tl.uint32) < (until - n).to(tl.uint32)
    if WINDOW:
        seen = seen & (tl.load(position_ptr + m) - tl.load(position_ptr + n) < window)
    return tl.where(seen, s, UNSEEN)


@triton.jit(do_not_specialize=ANY_NUMBER)
def attend(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    lse_ptr,
    full_ptr,
    count_ptr,
    index_ptr,
    index_width,
    until_ptr,
    position_ptr,
    qh,
    qt,
    kh,
    kt: tl.constexpr,
    vh,
    vt: tl.constexpr,
    oh,
    ot,
    tokens,
    scale,
    cap,
    window,
    group,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Outputs of ROWS queries of one head, and their log-sum-exp."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    m = block * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, SIZE)
    columns = tl.arange(0, COLUMNS)
    q = tl.load(q_ptr + head.to(tl.int64) * qh + m[:, None].to(tl.int64) * qt + d[None, :])
    k_ptr += (head // group).to(tl.int64) * kh
    v_ptr += (head // group).to(tl.int64) * vh
    k_tile = columns[:, None] * kt + d[None, :]
    v_tile = columns[:, None] * vt + d[None, :]
    unit = (1.0 if CAPPED else scale) * 1.4426950408889634
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, SIZE], tl.float32)
    full = tl.load(full_ptr + block)
    count = tl.load(count_ptr + block)
    index_ptr += block * index_width
    first = tl.load(index_ptr) * COLUMNS
    for j in range(count):
        n = first + columns
        k = tl.load(k_ptr + first.to(tl.int64) * kt + k_tile)
        v = tl.load(v_ptr + first.to(tl.int64) * vt + v_tile)
        first = tl.load(index_ptr + tl.minimum(j + 1, count - 1)) * COLUMNS
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if CAPPED:
            s = cap * _capped_tanh(s * scale / cap)
        if j >= full:
            until = tl.load(until_ptr + n)
            s = _masked(s, m[:, None], n[None, :], until[None, :], position_ptr, window, WINDOW)
        new_top = tl.maximum(top, tl.max(s, 1) * unit)
        p = tl.exp2(s * unit - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        top = new_top
    out = out / total[:, None]
    tl.store(o_ptr + head.to(tl.int64) * oh + m[:, None].to(tl.int64) * ot + d[None, :], out.to(o_ptr.dtype.element_ty))
    tl.store(lse_ptr + head.to(tl.int64) * tokens + m, top + tl.log2(total))


@triton.jit(do_not_specialize=ANY_NUMBER)
def query_gradient(
    q_ptr,
    k_ptr,
    v_ptr,
    g_ptr,
    o_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    full_ptr,
    count_ptr,
    index_ptr,
    index_width,
    until_ptr,
    position_ptr,
    qh,
    qt,
    kh,
    kt: tl.constexpr,
    vh,
    vt: tl.constexpr,
    gh,
    gt,
    oh,
    ot,
    dqh,
    dqt,
    tokens,
    scale,
    cap,
    window,
    group,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dQ of ROWS queries of one head, and their delta = dO . o."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    m = block * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, SIZE)
    columns = tl.arange(0, COLUMNS)
    q = tl.load(q_ptr + head.to(tl.int64) * qh + m[:, None].to(tl.int64) * qt + d[None, :])
    g = tl.load(g_ptr + head.to(tl.int64) * gh + m[:, None].to(tl.int64) * gt + d[None, :])
    lse = tl.load(lse_ptr + head.to(tl.int64) * tokens + m)
    o = tl.load(o_ptr + head.to(tl.int64) * oh + m[:, None].to(tl.int64) * ot + d[None, :])
    delta = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(delta_ptr + head.to(tl.int64) * tokens + m, delta)
    k_ptr += (head // group).to(tl.int64) * kh
    v_ptr += (head // group).to(tl.int64) * vh
    k_tile = columns[:, None] * kt + d[None, :]
    v_tile = columns[:, None] * vt + d[None, :]
    unit = (1.0 if CAPPED else scale) * 1.4426950408889634
    dq = tl.zeros([ROWS, SIZE], tl.float32)
    full = tl.load(full_ptr + block)
    count = tl.load(count_ptr + block)
    index_ptr += block * index_width
    first = tl.load(index_ptr) * COLUMNS
    for j in range(count):
        n = first + columns
        k = tl.load(k_ptr + first.to(tl.int64) * kt + k_tile)
        v = tl.load(v_ptr + first.to(tl.int64) * vt + v_tile)
        first = tl.load(index_ptr + tl.minimum(j + 1, count - 1)) * COLUMNS
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        slope = 1.0
        if CAPPED:
            bent = _capped_tanh(s * scale / cap)
            s = cap * bent
            slope = 1 - bent * bent
        if j >= full:
            until = tl.load(until_ptr + n)
            s = _masked(s, m[:, None], n[None, :], until[None, :], position_ptr, window, WINDOW)
        p = tl.exp2(s * unit - lse[:, None])
        dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None]) * slope
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    dq = dq * scale
    tl.store(
        dq_ptr + head.to(tl.int64) * dqh + m[:, None].to(tl.int64) * dqt + d[None, :], dq.to(dq_ptr.dtype.element_ty)
    )


@triton.jit(do_not_specialize=ANY_NUMBER)
def key_gradient(
    q_ptr,
    k_ptr,
    v_ptr,
    g_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    full_ptr,
    count_ptr,
    index_ptr,
    index_width,
    until_ptr,
    position_ptr,
    qh,
    qt: tl.constexpr,
    kh,
    kt,
    vh,
    vt,
    gh,
    gt: tl.constexpr,
    dkh,
    dkt,
    dvh,
    dvt,
    tokens,
    scale,
    cap,
    window,
    group,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dK and dV of COLUMNS keys of one key head, over all query heads that share it."""
    block = tl.program_id(0)
    key_head = tl.program_id(1)
    n = block * COLUMNS + tl.arange(0, COLUMNS)
    d = tl.arange(0, SIZE)
    rows = tl.arange(0, ROWS)
    k = tl.load(k_ptr + key_head.to(tl.int64) * kh + n[:, None].to(tl.int64) * kt + d[None, :])
    v = tl.load(v_ptr + key_head.to(tl.int64) * vh + n[:, None].to(tl.int64) * vt + d[None, :])
    q_tile = rows[:, None] * qt + d[None, :]
    g_tile = rows[:, None] * gt + d[None, :]
    until = tl.load(until_ptr + n)
    unit = (1.0 if CAPPED else scale) * 1.4426950408889634
    dk = tl.zeros([COLUMNS, SIZE], tl.float32)
    dv = tl.zeros([COLUMNS, SIZE], tl.float32)
    full = tl.load(full_ptr + block)
    count = tl.load(count_ptr + block)
    index_ptr += block * index_width
    first = tl.load(index_ptr) * ROWS
    head = key_head * group
    j = 0
    for _ in range(count * group):
        m = first + rows
        q = tl.load(q_ptr + (head.to(tl.int64) * qh + first.to(tl.int64) * qt) + q_tile)
        g = tl.load(g_ptr + (head.to(tl.int64) * gh + first.to(tl.int64) * gt) + g_tile)
        lse = tl.load(lse_ptr + (head.to(tl.int64) * tokens + first) + rows)
        delta = tl.load(delta_ptr + (head.to(tl.int64) * tokens + first) + rows)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        slope = 1.0
        if CAPPED:
            bent = _capped_tanh(s * scale / cap)
            s = cap * bent
            slope = 1 - bent * bent
        if j >= full:
            s = _masked(s, m[None, :], n[:, None], until[:, None], position_ptr, window, WINDOW)
        last = j + 1 == count
        head += tl.where(last, 1, 0)
        j = tl.where(last, 0, j + 1)
        first = tl.load(index_ptr + j) * ROWS
        p = tl.exp2(s * unit - lse[None, :])
        dv = tl.dot(p.to(g.dtype), g, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(g), input_precision=PRECISION)
        ds = p * (dp - delta[None, :]) * slope
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    dk = dk * scale
    place = n[:, None].to(tl.int64)
    tl.store(dk_ptr + key_head.to(tl.int64) * dkh + place * dkt + d[None, :], dk.to(dk_ptr.dtype.element_ty))
    tl.store(dv_ptr + key_head.to(tl.int64) * dvh + place * dvt + d[None, :], dv.to(dv_ptr.dtype.element_ty))
