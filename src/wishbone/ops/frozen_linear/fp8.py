r"""A frozen weight in FP8: one byte an element, and with a scale for each row FP8 products forward and backward.

**One scale a row**: as `eight_bit.py` says.

**One scale a block of 128 x 128** (DeepSeek-V3, arXiv:2412.19437, section 3.3), W_nk = s_{n/128, k/128} q_nk. These
scales change along the summed dimension, so partial sums would have to be scaled every 128 columns, which costs what
FP8 gains unless the kernel is tuned for one GPU. Instead W is dequantized to the dtype of x in scratch memory, in 4% of
the time of the product that follows, and x and g are not rounded at all.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from wishbone.ops.fp8_quantize import E4M3, E4M3_ROWS, QuantizedRows, RowForm
from wishbone.ops.frozen_linear.eight_bit import EightBitWeight, Term, check_codes
from wishbone.ops.frozen_linear.matrix import MatrixWeight
from wishbone.ops.frozen_linear.scaled_product import scaled_product
from wishbone.ops.frozen_linear.scratch import scratch
from wishbone.ops.frozen_linear.weight import Prepared
from wishbone.ops.low_rank_add import add_low_rank_

BLOCK = 128


class FP8Weight(EightBitWeight):
    """W = scale * qweight, one scale a row, as `EightBitWeight`; qweight is float8_e4m3fn."""

    dtype = E4M3
    gradient_form = E4M3_ROWS

    @staticmethod
    def form_of_input(in_features: int) -> RowForm:
        """Return e4m3."""
        return E4M3_ROWS

    def forward(self, prepared: Prepared, bias: Tensor | None = None) -> Tensor:
        """Return e(x) W^T + bias."""
        assert isinstance(prepared, QuantizedRows)
        return _product(prepared, self.qweight, self.scale, bias)

    def backward_prepared(self, rows: QuantizedRows, term: Term | None = None) -> Tensor:
        """Return `rows` q and the term, for e(grad * scale) that was made together with grad."""
        dx = _product(rows, self.transposed(), _ones(self.in_features, rows.values.device))
        return dx if term is None else add_low_rank_(dx, *term)

    def dense(self) -> Tensor:
        """Return scale * q in float32."""
        return self.qweight.float() * self.scale[:, None]


class FP8BlockWeight(MatrixWeight):
    """W = scale * qweight, one scale a block of 128 x 128.

    Args:
        qweight: [N, K], float8_e4m3fn, contiguous.
        scale: [ceil(N / 128), ceil(K / 128)], float32.

    Raises:
        ValueError: for other shapes or dtypes.
    """

    def __init__(self, qweight: Tensor, scale: Tensor) -> None:
        check_codes(qweight, scale, E4M3)
        super().__init__(*qweight.shape)
        self.qweight, self.scale = qweight.detach(), scale.detach().contiguous()
        blocks = tuple(-(-size // BLOCK) for size in qweight.shape)
        if self.scale.shape != blocks:
            raise ValueError(f"scales of shape {tuple(scale.shape)} are not one for each of {blocks} blocks")

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return W [N, K] in `dtype`, on CUDA in scratch memory."""
        if not self.qweight.is_cuda:
            return self.dense().to(dtype)
        from wishbone.ops.frozen_linear.triton import dequantize_blocks

        shape = (self.out_features, self.in_features)
        return dequantize_blocks(self.qweight, self.scale, scratch(shape, dtype, self.qweight.device))

    def dense(self) -> Tensor:
        """Return scale * q in float32."""
        rows, columns = self.qweight.shape
        scale = self.scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
        return self.qweight.float() * scale


def _product(rows: QuantizedRows, q: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return rows (scale * q)^T + bias, [T, N], in the dtype that `rows` had; computed in float32 on a CPU."""
    if not rows.values.is_cuda:
        exact = rows.dequantized()
        product = exact @ (q.to(exact.dtype) * scale.to(exact.dtype)[:, None]).t()
        return (product if bias is None else product + bias).to(rows.dtype)
    fused = bias if bias is not None and bias.dtype == torch.bfloat16 else None
    product = scaled_product(rows.values, rows.scale, q, scale[None, :], fused).to(rows.dtype)
    return product if bias is None or fused is not None else product + bias


@functools.cache
def _ones(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(size, dtype=torch.float32, device=device)
