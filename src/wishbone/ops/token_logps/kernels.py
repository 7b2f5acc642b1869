r"""The two passes over one token's logits, as Triton kernels: one program a token.

The first pass goes up the vocabulary and keeps every sum relative to the largest logit m so far; where a block holds a
larger one, the sums are carried over to it. Exponents are kept in bits, d_v = (z_v - m) log2 e, since a GPU raises 2 to
a power in one instruction:

    S = sum_v 2^d_v,    U = sum_v d_v 2^d_v,    Q = sum_v 2^(2 d_v)

    log p = ln 2 (d_target - log2 S),    entropy = ln 2 (log2 S - U / S),    log sum_v p_v^2 = ln 2 (log2 Q - 2 log2 S)

The second pass goes down again, so that it begins with what the caches still hold, and writes the gradient of log p
with respect to the raw logits x = W h, z = cap(s (x + b)):

    g_v = s cap'(z_v) ([v = target] - 2^d_v / S),    cap'(z) = 1 - (z / c)^2  or  1

A 16-bit gradient takes the upper half of the bytes of its own logits. Going down, what is written lies at or above what
is still to be read: in a row of N logits, logit k begins at byte 4 k and its gradient at byte 2 N + 2 k >= 4 k. The
barrier keeps the warps of a program in one block, whose logits all of them have read by then.

Memory is the bound: 4 bytes a logit are read going up, 4 going down, 2 are written. So that arithmetic stays below it,
a block is loaded while the one before is summed, neighbours that one thread holds share their sums, and arguments that
are None (no bias, no softcap, nobody asked for the entropy) cost nothing: each combination is a kernel of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
FOLD = tl.constexpr(4)
ONE_A_TOKEN = [
    *("targets", "logps", "entropies", "mean_logits", "are_top1", "log_sum_squares"),
    *("peaks", "totals", "coefficients"),
]
"""Arguments that are read or written once a program: their alignment makes no kernel of its own."""


@triton.jit
def _tanh(x):
    size = tl.abs(x)
    decay = tl.exp2(size * (-2 * LOG2_E))
    square = x * x
    series = 1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    value = tl.where(size < 0.3, size * series, (1 - decay) / (1 + decay))
    return tl.where(x < 0, -value, value)


@triton.jit
def _final_logits(x, bias, scale, softcap, column, inside):
    """Return z = cap(s (x + b)) for the raw logits x of some columns."""
    if bias is not None:
        x += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if scale is not None:
        x *= scale
    if softcap is not None:
        x = softcap * _tanh(x * (1.0 / softcap))
    return x


@triton.jit
def _fold(x):
    """Sum every FOLD neighbours of a block; a thread has loaded them together."""
    return tl.sum(tl.reshape(x, [x.shape[0] // FOLD, FOLD]), 1)


@triton.jit
def _write_gradient(
    logits,
    gradient,
    bias,
    scale,
    softcap,
    target,
    peak,
    total,
    coefficient,
    vocabulary,
    width,
    BLOCK: tl.constexpr,
):
    """Write coefficient * d log p / dx over one token's vocabulary, from its last block down to its first."""
    inverse = 1.0 / total
    if scale is not None:
        coefficient *= scale
    columns = tl.arange(0, BLOCK)
    last = (vocabulary - 1) // BLOCK * BLOCK
    ahead = tl.load(logits + last + columns, mask=last + columns < width, other=0.0)
    for done in range(0, vocabulary, BLOCK):
        column = last - done + columns
        x = ahead
        ahead = tl.load(logits + column - BLOCK, mask=column >= BLOCK, other=0.0)
        tl.debug_barrier()
        z = _final_logits(x, bias, scale, softcap, column, column < vocabulary)
        value = tl.where(column == target, 1.0, 0.0) - tl.exp2(z * LOG2_E - peak) * inverse
        if softcap is not None:
            capped = z * (1.0 / softcap)
            value *= 1 - capped * capped
        tl.store(gradient + column, (value * coefficient).to(gradient.dtype.element_ty), mask=column < width)


@triton.jit(do_not_specialize_on_alignment=ONE_A_TOKEN)
def score_tokens(
    logits,
    gradient,
    bias,
    scale,
    softcap,
    targets,
    logps,
    entropies,
    mean_logits,
    are_top1,
    log_sum_squares,
    peaks,
    totals,
    vocabulary,
    width,
    gradient_stride,
    BLOCK: tl.constexpr,
):
    """Score one token a program, and write the gradient of its log-probability where `gradient` is given.

    Args:
        logits: [tokens, width] float32, of which the first `vocabulary` columns are x = W h.
        gradient: rows of `width` columns, `gradient_stride` apart, which may lie over `logits`; or None.
        bias, scale, softcap: of z = cap(s (x + b)), or None.
        targets: [tokens] int64. A target outside of the vocabulary scores NaN.
        logps: [tokens] float32.
        entropies, mean_logits, are_top1 (bool), log_sum_squares: [tokens], or all None.
        peaks, totals: [tokens] float32, m log2 e and S for `differentiate_tokens`, or both None.
    """
    token = tl.program_id(0).to(tl.int64)
    logits += token * width
    wanted = tl.load(targets + token)
    known = (wanted >= 0) & (wanted < vocabulary)
    target = wanted.to(tl.int32)
    at_target = tl.load(logits + target, mask=known, other=float("nan"))
    at_target = _final_logits(at_target, bias, scale, softcap, target, known)

    top = tl.full([], LOWEST, tl.float32)
    peak = top
    total = tl.zeros([BLOCK // FOLD], tl.float32)
    if entropies is not None:
        weighted = tl.zeros([BLOCK // FOLD], tl.float32)
        squares = tl.zeros([BLOCK // FOLD], tl.float32)
        summed = tl.zeros([BLOCK // FOLD], tl.float32)
        beaten = tl.zeros([], tl.int32)
    columns = tl.arange(0, BLOCK)
    ahead = tl.load(logits + columns, mask=columns < width, other=0.0)
    for start in range(0, vocabulary, BLOCK):
        column = start + columns
        x = ahead
        ahead = tl.load(logits + column + BLOCK, mask=column + BLOCK < width, other=0.0)
        inside = column < vocabulary
        z = tl.where(inside, _final_logits(x, bias, scale, softcap, column, inside), LOWEST)
        block_top = tl.max(z, 0)
        if block_top > top:
            risen = block_top * LOG2_E
            decay = tl.exp2(peak - risen)
            if entropies is not None:
                weighted = decay * (weighted + (peak - risen) * total)
                squares *= decay * decay
            total *= decay
            top = block_top
            peak = risen
        distance = z * LOG2_E - peak
        power = tl.exp2(distance)
        total += _fold(power)
        if entropies is not None:
            weighted += _fold(power * distance)
            squares += _fold(power * power)
            summed += _fold(tl.where(inside, z, 0.0))
            if block_top == at_target:
                beaten += tl.sum(((z == at_target) & (column < target)).to(tl.int32), 0)

    total = tl.sum(total, 0)
    log_total = tl.log2(total)
    tl.store(logps + token, (at_target * LOG2_E - peak - log_total) * LN_2)
    if entropies is not None:
        tl.store(entropies + token, (log_total - tl.sum(weighted, 0) / total) * LN_2)
        tl.store(mean_logits + token, tl.sum(summed, 0) / vocabulary)
        tl.store(are_top1 + token, (at_target >= top) & (beaten == 0))
        tl.store(log_sum_squares + token, (tl.log2(tl.sum(squares, 0)) - 2 * log_total) * LN_2)
    if peaks is not None:
        tl.store(peaks + token, peak)
        tl.store(totals + token, total)
    if gradient is not None:
        gradient += token * gradient_stride
        _write_gradient(
            logits, gradient, bias, scale, softcap, target, peak, total, 1.0, vocabulary, width, BLOCK=BLOCK
        )


@triton.jit(do_not_specialize_on_alignment=ONE_A_TOKEN)
def differentiate_tokens(
    logits,
    gradient,
    bias,
    scale,
    softcap,
    targets,
    peaks,
    totals,
    coefficients,
    vocabulary,
    width,
    gradient_stride,
    BLOCK: tl.constexpr,
):
    """Write coefficient * d log p / dx of one token a program, given its peak and S; arguments as `score_tokens`."""
    token = tl.program_id(0).to(tl.int64)
    _write_gradient(
        logits + token * width,
        gradient + token * gradient_stride,
        bias,
        scale,
        softcap,
        tl.load(targets + token).to(tl.int32),
        tl.load(peaks + token),
        tl.load(totals + token),
        tl.load(coefficients + token),
        vocabulary,
        width,
        BLOCK=BLOCK,
    )
