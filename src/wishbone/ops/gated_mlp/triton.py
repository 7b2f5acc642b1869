"""The elementwise part of a gated MLP in Triton: one pass over memory forward, one backward.

`elementwise.py` has the equations, `kernels.py` the kernels. Forward reads gate and up and writes the product: 6 bytes
an element in 16 bits. Backward reads the gradient of the product, gate and up, and writes over them the product, which
the adapter of `down` needs again, and both gradients: 12 bytes an element, and no new tensor.

For 8-bit weights the backward pass also quantizes both gradients: 14 bytes an element of the product instead of 18.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from wishbone.ops.fp8_quantize import QuantizedRows, RowForm
from wishbone.ops.fp8_quantize.triton import empty_rows
from wishbone.ops.gated_mlp.elementwise import Activation
from wishbone.ops.gated_mlp.kernels import backward, backward_quantized, forward
from wishbone.ops.launch_sizes import power_of_two, tiles

BLOCK = 1024
WARPS = 4
QUANTIZED_BLOCK = 2048
COLUMNS_A_WARP = 128


def gated_product(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Return p = a(gate) * up [T, I], contiguous; rows of gate and up [T, I] may be apart by more than I."""
    product = torch.empty_like(gate, memory_format=torch.contiguous_format)
    _launch(forward, product, gate, up, activation)
    return product


def gated_backward_(product_gradient: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> None:
    """Overwrite dp with p, gate with dg and up with du; shapes [T, I]."""
    _launch(backward, product_gradient, gate, up, activation)


def gated_backward_quantized_(
    product_gradient: Tensor, both: Tensor, activation: Activation, column_scale: Tensor, form: RowForm
) -> QuantizedRows:
    """As `gated_backward_` with gate and up side by side in one buffer [T, 2 I], contiguous; return its rows in 8 bits.

    These are `quantize_rows(both, column_scale, form=form)` of the overwritten buffer; column_scale [2 I] is float32.
    """
    quantized = empty_rows(both, form)
    (rows, columns), dp = product_gradient.shape, product_gradient
    assert both.is_contiguous() and dp.stride(1) == 1
    if rows:
        block = min(QUANTIZED_BLOCK, power_of_two(columns))
        backward_quantized[(rows,)](
            dp,
            both,
            column_scale.contiguous(),
            quantized.values,
            quantized.scale,
            dp.stride(0),
            columns,
            SILU=activation == "silu",
            DIVISOR=form.scale_divisor,
            BLOCK=block,
            INTERPRETED=triton.knobs.runtime.interpret,
            num_warps=max(1, block // COLUMNS_A_WARP),
        )
    return quantized


def _launch(kernel: Any, product: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> None:
    """Launch `forward` or `backward`."""
    rows, columns = product.shape
    stride_product_row, stride_product = product.stride()
    stride_gate_row, stride_gate = gate.stride()
    stride_up_row, stride_up = up.stride()
    assert stride_product == stride_gate == stride_up == 1
    if rows == 0:
        return
    kernel[(rows, tiles(columns, BLOCK))](
        product,
        gate,
        up,
        stride_product_row,
        stride_gate_row,
        stride_up_row,
        columns,
        SILU=activation == "silu",
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
