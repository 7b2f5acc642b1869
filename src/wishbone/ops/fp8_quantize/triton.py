"""Rows to 8 bits in Triton, with a norm or an activation on the way.

Memory traffic sets the least time: 2 bytes read and 1 written for each element of a bfloat16 matrix, and 2 more written
where the 16-bit result of a norm or an activation is kept. Two choices keep arithmetic below that. A row is multiplied
by 448 / max instead of divided by its scale. And the maximum is taken over bit patterns: without their sign, floats and
their patterns as integers have one order, in which infinity and NaN come last, so that both reach the scale.

Rows in int8 are rotated by a product with H on tensor cores; its +-1 are read from memory, where the cache holds them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from wishbone.ops.fp8_quantize.kernels import quantize, quantize_both, quantize_parts
from wishbone.ops.fp8_quantize.register_rotation import elements_in_registers
from wishbone.ops.fp8_quantize.rotation import hadamard
from wishbone.ops.fp8_quantize.rows import E4M3_ROWS, LockstepRows, QuantizedRows, RowForm
from wishbone.ops.fp8_quantize.swiglu_kernels import swiglu, swiglu_both, swiglu_both_held
from wishbone.ops.launch_sizes import power_of_two

MOST_WARPS = 32
WARPS_THAT_KEEP_SWIGLU = 16
"""Most warps of a program that also writes the product of SwiGLU, as measured (docs/log.md)."""
SWIGLU_BLOCK, SWIGLU_COLUMNS_A_WARP = 4096, 128
"""Columns of SwiGLU of policy and reference at a time, half as many where they are rotated, and columns of a warp."""
SWIGLU_ROTATED_A_WARP = 512
"""Columns of a warp of SwiGLU of policy and reference where they are rotated in registers."""
HELD_WARPS, HELD_COLUMNS = 32, 16384
"""Warps of a program of SwiGLU of policy and reference that holds whole rows of 16 bits, and the widest such rows."""


def quantize_rows_triton(x: Tensor, column_scale: Tensor | None = None, form: RowForm = E4M3_ROWS) -> QuantizedRows:
    """Return x, or x * column_scale, in 8 bits with one scale a row; as `quantize_rows`."""
    x = dense_rows(x)
    out = empty_rows(x, form)
    if x.shape[0]:
        block, warps = row_block(x.shape[1], form)
        quantize[(x.shape[0],)](
            x,
            x if column_scale is None else column_scale.contiguous(),
            out.values,
            out.scale,
            signs_of(x, form),
            x.stride(0),
            x.shape[1],
            DIVISOR=form.scale_divisor,
            TURN=form.block,
            IN_REGISTERS=elements_in_registers(x.shape[1], block, form.block, warps, x),
            SCALED=column_scale is not None,
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=warps,
        )
    return out


def quantize_side_by_side_triton(
    parts: Sequence[Tensor], column_scale: Tensor, form: RowForm = E4M3_ROWS
) -> QuantizedRows:
    """Return the rows of matrices side by side, times column_scale, in 8 bits; as `quantize_side_by_side`."""
    if len(parts) not in (2, 3):
        return quantize_rows_triton(torch.cat(list(parts), 1), column_scale, form)
    first, second, third = (dense_rows(part) for part in (*parts, parts[-1])[:3])
    count, columns = first.shape[0], column_scale.numel()
    values = torch.empty(count, columns, dtype=form.dtype, device=first.device)
    out = QuantizedRows(values, torch.empty(count, 1, dtype=torch.float32, device=first.device), first.dtype)
    if count:
        block, warps = row_block(columns)
        quantize_parts[(count,)](
            first,
            second,
            third,
            column_scale.contiguous(),
            out.values,
            out.scale,
            first.stride(0),
            second.stride(0),
            third.stride(0),
            first.shape[1],
            first.shape[1] + second.shape[1],
            columns,
            DIVISOR=form.scale_divisor,
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=warps,
        )
    return out


def quantize_both_triton(x: Tensor, reference: Tensor, form: RowForm = E4M3_ROWS) -> LockstepRows:
    """Return the reference's rows in 8 bits and the difference of x; as `quantize_both`."""
    x, reference = dense_rows(x), dense_rows(reference)
    out = LockstepRows(empty_rows(x, form), empty_rows(x, form))
    if x.shape[0]:
        block, warps = row_block(x.shape[1], form)
        quantize_both[(x.shape[0],)](
            x,
            reference,
            out.reference.values,
            out.reference.scale,
            out.difference.values,
            out.difference.scale,
            signs_of(x, form),
            x.stride(0),
            reference.stride(0),
            x.shape[1],
            DIVISOR=form.scale_divisor,
            TURN=form.block,
            IN_REGISTERS=elements_in_registers(x.shape[1], block, form.block, warps, x, reference),
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=warps,
        )
    return out


def swiglu_quantize_triton(
    gate: Tensor, up: Tensor, *, keep: bool = True, form: RowForm = E4M3_ROWS
) -> tuple[Tensor | None, QuantizedRows]:
    """Return silu(gate) * up and the same in 8 bits; as `swiglu_quantize`."""
    gate, up = dense_rows(gate), dense_rows(up)
    out = empty_rows(gate, form)
    product = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) if keep else None
    if gate.shape[0]:
        block, warps = row_block(gate.shape[1], form)
        warps = min(warps, WARPS_THAT_KEEP_SWIGLU) if keep else warps
        swiglu[(gate.shape[0],)](
            gate,
            up,
            gate if product is None else product,
            out.values,
            out.scale,
            signs_of(gate, form),
            gate.stride(0),
            up.stride(0),
            gate.shape[1],
            DIVISOR=form.scale_divisor,
            TURN=form.block,
            IN_REGISTERS=elements_in_registers(gate.shape[1], block, form.block, warps, gate, up),
            KEEP=keep,
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=warps,
        )
    return product, out


def swiglu_quantize_both_triton(
    gate: Tensor,
    up: Tensor,
    reference_gate: Tensor,
    reference_up: Tensor,
    *,
    keep: bool = True,
    form: RowForm = E4M3_ROWS,
) -> tuple[Tensor | None, LockstepRows]:
    """Return silu(gate) * up, the reference's in 8 bits, and their difference; as `swiglu_quantize_both`."""
    gate, up, reference_gate, reference_up = map(dense_rows, (gate, up, reference_gate, reference_up))
    reference, difference = empty_rows(gate, form), empty_rows(gate, form)
    product = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) if keep else None
    columns, rows = gate.shape[1], (gate, up, reference_gate, reference_up)
    arguments = (
        *rows,
        gate if product is None else product,
        reference.values,
        reference.scale,
        difference.values,
        difference.scale,
    )
    strides, interpreted = [one.stride(0) for one in rows], triton.knobs.runtime.interpret
    block = power_of_two(columns)
    if not gate.shape[0]:
        return product, LockstepRows(reference, difference)
    if form == E4M3_ROWS and gate.element_size() == 2 and block <= HELD_COLUMNS:
        swiglu_both_held[(gate.shape[0],)](
            *arguments,
            *strides,
            columns,
            DIVISOR=form.scale_divisor,
            KEEP=keep,
            BLOCK=block,
            INTERPRETED=interpreted,
            num_warps=min(HELD_WARPS, max(1, block // 512)),
        )
    else:
        block = min(SWIGLU_BLOCK // 2 if form.block else SWIGLU_BLOCK, block)
        warps = max(1, block // SWIGLU_ROTATED_A_WARP)
        in_registers = elements_in_registers(columns, block, form.block, warps, *rows)
        swiglu_both[(gate.shape[0],)](
            *arguments,
            signs_of(gate, form),
            *strides,
            columns,
            DIVISOR=form.scale_divisor,
            TURN=form.block,
            IN_REGISTERS=in_registers,
            KEEP=keep,
            BLOCK=block,
            INTERPRETED=interpreted,
            num_warps=warps if in_registers else max(1, block // SWIGLU_COLUMNS_A_WARP),
            num_stages=1,
        )
    return product, LockstepRows(reference, difference)


def dense_rows(x: Tensor) -> Tensor:
    """Return x with the elements of a row side by side in memory; the rows may lie apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def signs_of(x: Tensor, form: RowForm) -> Tensor:
    """Return H for the kernels that rotate, in the dtype of x; any tensor for those that do not."""
    if not form.block:
        return x
    return hadamard(form.block, torch.float32 if triton.knobs.runtime.interpret else x.dtype, x.device)


def empty_rows(x: Tensor, form: RowForm = E4M3_ROWS) -> QuantizedRows:
    """Return memory for the rows of x in 8 bits."""
    values = torch.empty(x.shape, dtype=form.dtype, device=x.device)
    return QuantizedRows(values, torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device), x.dtype)


def row_block(columns: int, form: RowForm = E4M3_ROWS) -> tuple[int, int]:
    """Return the power of two that holds a row, and as many warps as leave 16 of its elements to a thread.

    Rows that are rotated and not normed leave 32: half as many registers, so that another row is read meanwhile. (A
    norm's sums depend on how many elements a thread has, and are the same whether its row is rotated or not.)
    """
    block = power_of_two(columns)
    return block, min(MOST_WARPS, max(1, block // (1024 if form.block else 512)))
