r"""The two passes over one token's logits, as Triton kernels: one program a token.

The first pass goes up the vocabulary and keeps every sum relative to the largest logit m so far; where a block holds a
larger one, the sums are rescaled to it. Exponents are kept to base 2, d_v = (z_v - m) log2 e, since a GPU raises 2 to a
power in one instruction:

    S = sum_v 2^d_v,    U = sum_v d_v 2^d_v,    Q = sum_v 2^(2 d_v)

    log p = ln 2 (d_target - log2 S),    entropy = ln 2 (log2 S - U / S),    log sum_v p_v^2 = ln 2 (log2 Q - 2 log2 S)

The second pass goes down again, so that it begins with what the caches still hold, and writes the gradient of log p
with respect to the raw logits x = W h, z = cap(s (x + b)):

    g_v = s cap'(z_v) ([v = target] - 2^d_v / S),    cap'(z) = 1 - (z / c)^2  or  1

A 16-bit gradient takes the upper half of the bytes of its own logits. Going down, every write lands at or above what
is still to be read: in a row of N logits, logit k begins at byte 4 k and its gradient at byte 2 N + 2 k >= 4 k. The
barrier keeps the warps of a program in one block, whose logits all of them have read by then.

Memory traffic is the limit: 4 bytes a logit are read going up, 4 going down, 2 are written. To keep arithmetic below
that limit, a block is loaded while the one before is summed, and neighbours that one thread holds share their sums.
Arguments that are None (no bias, no softcap, nobody asked for the entropy) cost nothing: each combination is a kernel
of its own.

Shapes, with T tokens, V = vocabulary logits a token and W = width >= V columns a row:

    logits_ptr            [T, W] float32, of which the first V columns are x = W h, the others padding
    gradient_ptr          T rows of W columns, which may lie over the logits as above; or None for no gradient
    stride_gradient       elements from one row of the gradient to the next
    bias_ptr              [V], or None for b = 0
    scale                 s, or None for 1
    softcap               c, or None for no cap
    targets_ptr           [T] int64; a target outside of the vocabulary scores NaN
    logps_ptr             [T] float32
    entropies_ptr, mean_logits_ptr, are_top1_ptr (bool), log_sum_squares_ptr    [T], or all None
    peaks_ptr, totals_ptr [T] float32, m log2 e and S of each token, or both None
    coefficients_ptr      [T] float32, factors on the gradients of the tokens
    BLOCK                 logits that a program handles at a time
"""

from __future__ import annotations

import triton
import triton.language as tl

from wishbone.ops.kernel_parts import LN2, LOG2E

LOWEST = tl.constexpr(-1e30)
FOLD = tl.constexpr(4)
ONE_A_TOKEN = [
    *("targets_ptr", "logps_ptr", "entropies_ptr", "mean_logits_ptr", "are_top1_ptr", "log_sum_squares_ptr"),
    *("peaks_ptr", "totals_ptr", "coefficients_ptr"),
]
"""Arguments that are read or written once a program: their alignment makes no kernel of its own."""


@triton.jit
def _tanh(x):
    """Return tanh x; below 0.3 from its series, as 1 - e^(-2x) would lose digits there."""
    size = tl.abs(x)
    decay = tl.exp2(size * (-2 * LOG2E))
    square = x * x
    series = 1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    value = tl.where(size < 0.3, size * series, (1 - decay) / (1 + decay))
    return tl.where(x < 0, -value, value)


@triton.jit
def _final_logits(x, bias_ptr, scale, softcap, column, inside):
    """Return z = cap(s (x + b)) for the raw logits x of some columns."""
    if bias_ptr is not None:
        x += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if scale is not None:
        x *= scale
    if softcap is not None:
        x = softcap * _tanh(x * (1.0 / softcap))
    return x


@triton.jit
def _fold(x):
    """Return the sums of every FOLD neighbours of a block, which one thread has loaded together."""
    return tl.sum(tl.reshape(x, [x.shape[0] // FOLD, FOLD]), 1)


@triton.jit
def _write_gradient(
    logits_ptr,
    gradient_ptr,
    bias_ptr,
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
    """Write coefficient * d log p / dx over one token's vocabulary, from its last block down to its first.

    Here `logits_ptr` and `gradient_ptr` are of the token's own rows.
    """
    inverse = 1.0 / total
    if scale is not None:
        coefficient *= scale
    columns = tl.arange(0, BLOCK)
    last = (vocabulary - 1) // BLOCK * BLOCK
    ahead = tl.load(logits_ptr + last + columns, mask=last + columns < width, other=0.0)
    for done in range(0, vocabulary, BLOCK):
        column = last - done + columns
        x = ahead
        ahead = tl.load(logits_ptr + column - BLOCK, mask=column >= BLOCK, other=0.0)
        tl.debug_barrier()
        z = _final_logits(x, bias_ptr, scale, softcap, column, column < vocabulary)
        value = tl.where(column == target, 1.0, 0.0) - tl.exp2(z * LOG2E - peak) * inverse
        if softcap is not None:
            capped = z * (1.0 / softcap)
            value *= 1 - capped * capped
        tl.store(gradient_ptr + column, (value * coefficient).to(gradient_ptr.dtype.element_ty), mask=column < width)


@triton.jit(do_not_specialize_on_alignment=ONE_A_TOKEN)
def score_tokens(
    logits_ptr,
    gradient_ptr,
    bias_ptr,
    scale,
    softcap,
    targets_ptr,
    logps_ptr,
    entropies_ptr,
    mean_logits_ptr,
    are_top1_ptr,
    log_sum_squares_ptr,
    peaks_ptr,
    totals_ptr,
    vocabulary,
    width,
    stride_gradient,
    BLOCK: tl.constexpr,
):
    """Write the scores of one token, and the gradient of its log-probability where `gradient_ptr` is given.

    Grid (T,). Peaks and totals are for `differentiate_tokens`.
    """
    token = tl.program_id(0).to(tl.int64)
    logits_ptr += token * width
    wanted = tl.load(targets_ptr + token)
    known = (wanted >= 0) & (wanted < vocabulary)
    target = wanted.to(tl.int32)
    at_target = tl.load(logits_ptr + target, mask=known, other=float("nan"))
    at_target = _final_logits(at_target, bias_ptr, scale, softcap, target, known)

    top = tl.full([], LOWEST, tl.float32)
    peak = top
    total = tl.zeros([BLOCK // FOLD], tl.float32)
    if entropies_ptr is not None:
        weighted = tl.zeros([BLOCK // FOLD], tl.float32)
        squares = tl.zeros([BLOCK // FOLD], tl.float32)
        summed = tl.zeros([BLOCK // FOLD], tl.float32)
        beaten = tl.zeros([], tl.int32)
    columns = tl.arange(0, BLOCK)
    ahead = tl.load(logits_ptr + columns, mask=columns < width, other=0.0)
    for start in range(0, vocabulary, BLOCK):
        column = start + columns
        x = ahead
        ahead = tl.load(logits_ptr + column + BLOCK, mask=column + BLOCK < width, other=0.0)
        inside = column < vocabulary
        z = tl.where(inside, _final_logits(x, bias_ptr, scale, softcap, column, inside), LOWEST)
        block_top = tl.max(z, 0)
        if block_top > top:
            risen = block_top * LOG2E
            decay = tl.exp2(peak - risen)
            if entropies_ptr is not None:
                weighted = decay * (weighted + (peak - risen) * total)
                squares *= decay * decay
            total *= decay
            top = block_top
            peak = risen
        distance = z * LOG2E - peak
        power = tl.exp2(distance)
        total += _fold(power)
        if entropies_ptr is not None:
            weighted += _fold(power * distance)
            squares += _fold(power * power)
            summed += _fold(tl.where(inside, z, 0.0))
            if block_top == at_target:
                beaten += tl.sum(((z == at_target) & (column < target)).to(tl.int32), 0)

    total = tl.sum(total, 0)
    log_total = tl.log2(total)
    tl.store(logps_ptr + token, (at_target * LOG2E - peak - log_total) * LN2)
    if entropies_ptr is not None:
        tl.store(entropies_ptr + token, (log_total - tl.sum(weighted, 0) / total) * LN2)
        tl.store(mean_logits_ptr + token, tl.sum(summed, 0) / vocabulary)
        tl.store(are_top1_ptr + token, (at_target >= top) & (beaten == 0))
        tl.store(log_sum_squares_ptr + token, (tl.log2(tl.sum(squares, 0)) - 2 * log_total) * LN2)
    if peaks_ptr is not None:
        tl.store(peaks_ptr + token, peak)
        tl.store(totals_ptr + token, total)
    if gradient_ptr is not None:
        gradient_ptr += token * stride_gradient
        _write_gradient(
            logits_ptr, gradient_ptr, bias_ptr, scale, softcap, target, peak, total, 1.0, vocabulary, width, BLOCK=BLOCK
        )


@triton.jit(do_not_specialize_on_alignment=ONE_A_TOKEN)
def differentiate_tokens(
    logits_ptr,
    gradient_ptr,
    bias_ptr,
    scale,
    softcap,
    targets_ptr,
    peaks_ptr,
    totals_ptr,
    coefficients_ptr,
    vocabulary,
    width,
    stride_gradient,
    BLOCK: tl.constexpr,
):
    """Write coefficient * d log p / dx of one token, given its peak and total; grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    _write_gradient(
        logits_ptr + token * width,
        gradient_ptr + token * stride_gradient,
        bias_ptr,
        scale,
        softcap,
        tl.load(targets_ptr + token).to(tl.int32),
        tl.load(peaks_ptr + token),
        tl.load(totals_ptr + token),
        tl.load(coefficients_ptr + token),
        vocabulary,
        width,
        BLOCK=BLOCK,
    )
