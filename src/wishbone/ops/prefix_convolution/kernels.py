"""The short convolution of a packed row in Triton: a table says which token lies j before each.

    y_t = act(b + w_0 x_t + sum_j w_j x_before(j, t)),    before(j, t) = the token j before t in its sequence

Rows lie token by token, channels side by side, as linear layers leave them, so a token before is a load of another row.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(tokens, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the tokens [ROWS] and channels [COLUMNS] of a program of the grid (tokens / ROWS, channels / COLUMNS)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return row, column, row < tokens, column < channels


@triton.jit
def load_tile(ptr, row, there, stride, column, inside):
    """Return rows of a matrix at `column`, in float32; 0 where a row is not `there`."""
    at = ptr + row.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(at, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)


@triton.jit
def load_tap(weight_ptr, column, inside, tap, TAPS: tl.constexpr):
    """Return the weights of the input `tap` tokens before, of each channel [COLUMNS]."""
    return tl.load(weight_ptr + column * TAPS + (TAPS - 1 - tap), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def convolve_rows(
    x_ptr,
    weight_ptr,
    bias_ptr,
    before_ptr,
    d_out_ptr,
    out_ptr,
    tokens,
    channels,
    stride_x,
    stride_d_out,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    BACKWARD: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute outputs, or, if BACKWARD, the gradient of what goes into the activation.

    Args:
        x_ptr: [tokens, channels], stride_x elements from a token to the next; d_out_ptr: the same of the gradient.
        weight_ptr: [channels, TAPS]; bias_ptr: [channels], read if BIAS.
        before_ptr: [TAPS - 1, tokens], int32: the token one before, two before, ...; -1 for none.
        out_ptr: [tokens, channels], written.
    """
    row, column, exists, inside = tile(tokens, channels, ROWS, COLUMNS)
    total = load_tile(x_ptr, row, exists, stride_x, column, inside)
    total = total * load_tap(weight_ptr, column, inside, 0, TAPS)[None, :]
    for tap in tl.static_range(1, TAPS):
        source = tl.load(before_ptr + (tap - 1) * tokens + row, mask=exists, other=-1)
        x = load_tile(x_ptr, source, source >= 0, stride_x, column, inside)
        total += x * load_tap(weight_ptr, column, inside, tap, TAPS)[None, :]
    if BIAS:
        total += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SILU:
        share = tl.sigmoid(total)
        if BACKWARD:
            slope = share * (1.0 + total * (1.0 - share))
            total = slope * load_tile(d_out_ptr, row, exists, stride_d_out, column, inside)
        else:
            total = total * share
    at = out_ptr + row.to(tl.int64)[:, None] * channels + column[None, :]
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=exists[:, None] & inside[None, :])


@triton.jit
def spread_gradients(
    d_total_ptr,
    weight_ptr,
    after_ptr,
    d_x_ptr,
    tokens,
    channels,
    stride_d_total,
    MOST: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute the gradient of the inputs from that of what goes into the activation.

    Args:
        d_total_ptr: [tokens, channels].
        after_ptr: [TAPS - 1, MOST, tokens], int32: the tokens that read this one as their input one before, two before,
            ...; -1 for none. Each branch of a stem has one.
        d_x_ptr: [tokens, channels], written.
    """
    row, column, exists, inside = tile(tokens, channels, ROWS, COLUMNS)
    total = load_tile(d_total_ptr, row, exists, stride_d_total, column, inside)
    total = total * load_tap(weight_ptr, column, inside, 0, TAPS)[None, :]
    for tap in tl.static_range(1, TAPS):
        weight = load_tap(weight_ptr, column, inside, tap, TAPS)[None, :]
        for one in tl.static_range(MOST):
            reader = tl.load(after_ptr + ((tap - 1) * MOST + one) * tokens + row, mask=exists, other=-1)
            total += weight * load_tile(d_total_ptr, reader, reader >= 0, stride_d_total, column, inside)
    at = d_x_ptr + row.to(tl.int64)[:, None] * channels + column[None, :]
    tl.store(at, total.to(d_x_ptr.dtype.element_ty), mask=exists[:, None] & inside[None, :])
