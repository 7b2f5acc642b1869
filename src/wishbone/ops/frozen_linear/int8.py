r"""A frozen weight in int8, rotated along its rows: products on int8 tensor cores, which GPUs have since Turing.

With H the rotation of `fp8_quantize/rotation.py`, W H / sqrt(B) = s q, and the layer computes

    y_t = sum_k e(x_t)_k s q_k      e(x) = int8 of H x / sqrt(B)
    dx_t = ( e(g_t s) q ) H / sqrt(B)

Weights and inputs lose their outliers, so that int8 rounds both more finely than e4m3 does (docs/log.md). The gradient
g is not rotated, as that would have to be undone within the sum. On a CPU products of integers are exact, by
`torch._int_mm`; on CUDA so are they, and the rotation of dx runs before a tile of it leaves the processor.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from wishbone.ops.fp8_quantize import INT8_ROWS, QuantizedRows, RowForm, rotated_back, rotated_int8
from wishbone.ops.frozen_linear.eight_bit import EightBitWeight, Term
from wishbone.ops.frozen_linear.weight import Prepared
from wishbone.ops.low_rank_add import add_low_rank_

LONGEST_SUM = (2**31 - 1) // 127**2
"""Products of int8 that an int32 can sum whatever they are."""

logger = logging.getLogger(__name__)


class Int8Weight(EightBitWeight):
    """W = (scale * qweight) H / sqrt(B), one scale a row.

    Args:
        qweight: [N, K], int8 from -127 to 127, contiguous; N and K are multiples of 16 and at most `LONGEST_SUM`.
        scale: [N] or [N, 1], float32.

    Raises:
        ValueError: for other shapes or dtypes.
    """

    dtype = torch.int8
    gradient_form = INT8_ROWS

    def __init__(self, qweight: Tensor, scale: Tensor) -> None:
        super().__init__(qweight, scale)
        if max(qweight.shape) > LONGEST_SUM:
            raise ValueError(f"a sum of {max(qweight.shape)} products of int8 can exceed an int32")

    @staticmethod
    def form_of_input(in_features: int) -> RowForm:
        """Return int8 after a rotation."""
        return rotated_int8(in_features)

    def forward(self, prepared: Prepared, bias: Tensor | None = None) -> Tensor:
        """Return e(x) W^T + bias."""
        assert isinstance(prepared, QuantizedRows)
        return _product(prepared, self.qweight, self.scale, bias)

    def backward_prepared(self, rows: QuantizedRows, term: Term | None = None) -> Tensor:
        """Return (rows q) H / sqrt(B) and the term, for e(grad * scale) that was made together with grad."""
        return _product(rows, self.transposed(), turn=self.input_form.block, term=term)

    def dense(self) -> Tensor:
        """Return (scale * q) H / sqrt(B) in float32."""
        return rotated_back(self.qweight.float() * self.scale[:, None], self.input_form.block)


def _product(
    rows: QuantizedRows,
    q: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    turn: int = 0,
    term: Term | None = None,
) -> Tensor:
    """Return rows (scale * q)^T, rotated back in blocks of `turn` columns unless that is 0, plus bias and term."""
    if rows.values.is_cuda:
        from wishbone.ops.frozen_linear.int8_triton import int8_product

        return int8_product(rows, q, scale, bias, turn=turn, term=term)
    precise = torch.promote_types(rows.dtype, torch.float32)
    if _sums_exactly():
        product = torch._int_mm(rows.values, q.t()).to(precise).mul_(rows.scale)
    else:
        product = rows.dequantized() @ q.to(precise).t()
    if scale is not None:
        product.mul_(scale)
    if turn:
        product = rotated_back(product, turn)
    result = (product if bias is None else product.add_(bias)).to(rows.dtype)
    return result if term is None else add_low_rank_(result, *term)


@functools.cache
def _sums_exactly() -> bool:
    """Whether this processor's int8 products are right for the largest values; some cut off sums at 16 bits."""
    ones = torch.ones(2, 64, dtype=torch.int8)
    try:
        exact = bool((torch._int_mm(127 * ones, -127 * ones.t()) == -64 * 127**2).all())
    except RuntimeError:
        exact = False
    if not exact:
        logger.warning("int8 layers multiply in float32 on this processor, because its int8 products are not exact.")
    return exact
