"""Rows to FP8 in Triton: one program a row, which holds the whole row and so reads it once.

The floor is memory: 2 bytes read and 1 written for each number of a bfloat16 matrix (3 with the 16-bit result of a norm
kept: 2 read, 2 + 1 written). Two choices keep arithmetic below it. A row is multiplied by 448 / max rather than divided
by its scale. And the maximum is taken over bit patterns: without their sign, floats and their patterns as integers have
one order, in which NaN and infinity come last, so that both reach the scale.

A norm is the same number for number whether it is quantized or not, though sums depend on their order, and this on how
many columns a thread holds: as many as the widest access takes in 16 bytes, of e4m3 16. So the norm's kernel stores
only as many e4m3 numbers at once as there are numbers of x in 16 bytes.

Division and square root, once a row, are rounded correctly, and so are all products: values and scales are those of the
reference bit by bit. (On GPUs of compute capability 8.9 Triton converts by way of float16, cut off, which can take what
lies just above the middle between two numbers to the lower one.) In Triton's interpreter, whose conversion to e4m3
loses carries of the mantissa, numbers are brought onto the grid of e4m3 first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wishbone.ops.fp8_quantize.rows import E4M3, E4M3_MAX, SMALLEST_AMAX, QuantizedRows
from wishbone.ops.launch_sizes import power_of_two

LARGEST = tl.constexpr(E4M3_MAX)
SMALLEST = tl.constexpr(SMALLEST_AMAX)


def quantize_rows_triton(x: Tensor, column_scale: Tensor | None = None) -> QuantizedRows:
    """Return x, or x * column_scale, in e4m3 with one scale a row; as `quantize_rows`."""
    x = _dense_rows(x)
    out = empty_rows(x)
    if x.shape[0]:
        block, warps = _block(x.shape[1])
        _quantize_kernel[(x.shape[0],)](
            x,
            x if column_scale is None else column_scale.contiguous(),
            out.values,
            out.scale,
            x.stride(0),
            x.shape[1],
            SCALED=column_scale is not None,
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=warps,
        )
    return out


def rms_norm_quantize_triton(
    x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> tuple[Tensor, QuantizedRows, Tensor]:
    """Return RMSNorm of x, the same in e4m3, and 1 / rms of each row; as `rms_norm_quantize`."""
    out = empty_rows(x)
    normed, reciprocal_rms = _rms_norm(x, weight, eps, offset, out)
    return normed, out, reciprocal_rms


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return RMSNorm of x and 1 / rms of each row; as `rms_norm`."""
    return _rms_norm(x, weight, eps, offset, None)


def rms_norm_backward_triton(
    grad: Tensor, x: Tensor, weight: Tensor, reciprocal_rms: Tensor, *, offset: float = 0.0
) -> Tensor:
    """Return the gradient of x from that of its RMSNorm; as `rms_norm_backward`."""
    x, grad = _dense_rows(x), _dense_rows(grad)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.shape[0]:
        block, warps = _block(x.shape[1])
        _rms_norm_backward_kernel[(x.shape[0],)](
            grad,
            x,
            weight.contiguous(),
            reciprocal_rms,
            out,
            grad.stride(0),
            x.stride(0),
            x.shape[1],
            offset,
            BLOCK=block,
            num_warps=warps,
        )
    return out


def swiglu_quantize_triton(gate: Tensor, up: Tensor, *, keep: bool = True) -> tuple[Tensor | None, QuantizedRows]:
    """Return silu(gate) * up and the same in e4m3; as `swiglu_quantize`."""
    gate, up = _dense_rows(gate), _dense_rows(up)
    out = empty_rows(gate)
    product = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) if keep else None
    if gate.shape[0]:
        block, warps = _block(gate.shape[1])
        _swiglu_kernel[(gate.shape[0],)](
            gate,
            up,
            gate if product is None else product,
            out.values,
            out.scale,
            gate.stride(0),
            up.stride(0),
            gate.shape[1],
            KEEP=keep,
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=min(warps, 16) if keep else warps,  # as measured: docs/log.md
        )
    return product, out


def _rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float, quantized: QuantizedRows | None
) -> tuple[Tensor, Tensor]:
    x = _dense_rows(x)
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    reciprocal_rms = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    if x.shape[0]:
        block, warps = _block(x.shape[1])
        _rms_norm_kernel[(x.shape[0],)](
            x,
            weight.contiguous(),
            normed,
            reciprocal_rms,
            normed if quantized is None else quantized.values,
            reciprocal_rms if quantized is None else quantized.scale,
            x.stride(0),
            x.shape[1],
            eps,
            offset,
            OFFSET=offset != 0,
            QUANTIZE=quantized is not None,
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=warps,
        )
    return normed, reciprocal_rms


def _dense_rows(x: Tensor) -> Tensor:
    """Return x with neighbouring columns beside each other; rows may lie apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def empty_rows(x: Tensor) -> QuantizedRows:
    """Return memory for the rows of x in e4m3."""
    values = torch.empty(x.shape, dtype=E4M3, device=x.device)
    return QuantizedRows(values, torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device), x.dtype)


def _block(columns: int) -> tuple[int, int]:
    """Power of two that holds a row, and warps that leave 16 of its numbers to a thread."""
    block = power_of_two(columns)
    return block, min(32, max(1, block // 512))


@triton.jit
def magnitude(x):
    """The bit pattern of |x|: integers in the order of the numbers, then infinity, then NaN."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def row_scale(largest_magnitude):
    """The scale of a row, and what its numbers are multiplied by."""
    amax = largest_magnitude.to(tl.float32, bitcast=True)
    amax = tl.where(amax < SMALLEST, SMALLEST, amax)
    return tl.div_rn(amax, LARGEST), tl.div_rn(LARGEST, amax)


@triton.jit
def to_e4m3(scaled, INTERPRETED: tl.constexpr):
    """Round; the interpreter to 3 bits of mantissa or multiples of 2^-9, adding 1.5 2^20 times the power of 2 below."""
    if INTERPRETED:
        power = (scaled.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        shift = tl.maximum(power, 0.015625) * 1572864.0
        scaled = (scaled + shift) - shift
    return scaled.to(tl.float8e4nv)


@triton.jit
def _store_quantized(exact, values, scale, inside, INTERPRETED: tl.constexpr):
    """Store one row of float32 numbers, zero outside, as e4m3 and its scale, each where the pointers say."""
    own_scale, factor = row_scale(tl.max(magnitude(exact), axis=0))
    tl.store(values, to_e4m3(exact * factor, INTERPRETED), mask=inside)
    tl.store(scale, own_scale)


@triton.jit
def _quantize_kernel(
    x,
    column_scale,
    values,
    scale,
    stride,
    columns,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    exact = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        exact = exact * tl.load(column_scale + at, mask=inside, other=0.0).to(tl.float32)
    _store_quantized(exact, values + row * columns + at, scale + row, inside, INTERPRETED)


@triton.jit
def _rms_norm_kernel(
    x,
    weight,
    normed,
    reciprocal_rms,
    values,
    scale,
    stride,
    columns,
    eps,
    offset,
    OFFSET: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    exact = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=inside, other=0.0)
    mean_square = tl.sum(exact * exact, axis=0) / columns
    reciprocal = tl.div_rn(1.0, tl.sqrt_rn(mean_square + eps))
    unit = exact * reciprocal
    dtype = normed.dtype.element_ty
    if OFFSET:
        result = (unit * (offset + w.to(tl.float32))).to(dtype)
    else:
        result = (unit.to(dtype).to(tl.float32) * w.to(dtype).to(tl.float32)).to(dtype)
    tl.store(normed + row * columns + at, result, mask=inside)
    tl.store(reciprocal_rms + row, reciprocal)
    if QUANTIZE:
        rounded = tl.where(inside, result.to(tl.float32), 0.0)
        VECTOR: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
        target = tl.max_contiguous(values + row * columns + at, [VECTOR])
        _store_quantized(rounded, target, scale + row, inside, INTERPRETED)


@triton.jit
def _rms_norm_backward_kernel(
    grad, x, weight, reciprocal_rms, out, grad_stride, x_stride, columns, offset, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    reciprocal = tl.load(reciprocal_rms + row)
    unit = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32) * reciprocal
    g = tl.load(grad + row * grad_stride + at, mask=inside, other=0.0).to(tl.float32)
    weighted = g * (offset + tl.load(weight + at, mask=inside, other=0.0).to(tl.float32))
    mean = tl.sum(weighted * unit, axis=0) / columns
    result = reciprocal * (weighted - unit * mean)
    tl.store(out + row * columns + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_kernel(
    gate,
    up,
    product,
    values,
    scale,
    gate_stride,
    up_stride,
    columns,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    g = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0)
    u = tl.load(up + row * up_stride + at, mask=inside, other=0.0)
    dtype = product.dtype.element_ty
    exact = g.to(tl.float32)
    result = (exact / (1.0 + tl.exp(-exact)) * u.to(tl.float32)).to(dtype)
    if KEEP:
        tl.store(product + row * columns + at, result, mask=inside)
    _store_quantized(result.to(tl.float32), values + row * columns + at, scale + row, inside, INTERPRETED)
