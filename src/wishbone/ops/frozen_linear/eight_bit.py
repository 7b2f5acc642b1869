r"""A frozen weight of one byte an element with a scale for each row: 8-bit products forward and backward.

W_nk = s_n q_nk. With e(.) the rounding of each row to 8 bits (`fp8_quantize`), the layer computes

    y_t = W e(x_t)                dx_t = sum_n e(g_t s)_n q_n

so it is a linear layer with the weights W whose input is rounded, row by row; the derivative of rounding is taken as
the identity. The gradient that enters the matrix product is rounded in the same way, after multiplying in the scales of
W, which lie along the summed dimension there. Policy and reference round alike, as rows do not depend on each other.

There is one copy of q. The forward product reads it as it is. The 8-bit tensor cores need both factors with the summed
dimension innermost, so the backward product reads a transpose, which is made each time in scratch memory.

Two formats: e4m3 (`fp8.py`), and int8 after a rotation (`int8.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from wishbone.ops.fp8_quantize import QuantizedRows, RowForm, quantize_rows
from wishbone.ops.frozen_linear.scaled_product import MULTIPLE
from wishbone.ops.frozen_linear.scratch import scratch
from wishbone.ops.frozen_linear.weight import Prepared

Term = tuple[Tensor, Tensor]
"""What an adapter adds to a gradient [T, K]: the product of h [T, r] and S [r, K]."""


class EightBitWeight(ABC):
    """W = scale * qweight, one scale a row.

    Args:
        qweight: [N, K], of `dtype`, contiguous; N and K are multiples of 16.
        scale: [N] or [N, 1], float32.

    Attributes:
        input_form: how rows of the input are brought to 8 bits.
        gradient_form: how rows of the output's gradient are.

    Raises:
        ValueError: for other shapes or dtypes.
    """

    dtype: torch.dtype
    gradient_form: RowForm

    def __init__(self, qweight: Tensor, scale: Tensor) -> None:
        check_codes(qweight, scale, self.dtype)
        self.qweight, self.scale = qweight.detach(), scale.detach().view(-1)
        self.out_features, self.in_features = qweight.shape
        self.input_form = self.form_of_input(self.in_features)
        if self.scale.shape != (self.out_features,):
            raise ValueError(f"{self.scale.numel()} scales are not one for each of {self.out_features} rows")
        if self.out_features % MULTIPLE or self.in_features % MULTIPLE:
            raise ValueError(f"a weight of shape {tuple(qweight.shape)} is not a multiple of {MULTIPLE} both ways")

    @staticmethod
    @abstractmethod
    def form_of_input(in_features: int) -> RowForm:
        """Return how rows of this size are brought to 8 bits; rows of W were brought to 8 bits in the same way."""

    @abstractmethod
    def forward(self, prepared: Prepared, bias: Tensor | None = None) -> Tensor:
        """Return e(x) W^T + bias."""

    @abstractmethod
    def backward_prepared(self, rows: QuantizedRows, term: Term | None = None) -> Tensor:
        """Return `rows` q and the term, for e(grad * scale) that was made together with grad."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return what the codes stand for, in float32."""

    def prepare(self, x: Tensor) -> QuantizedRows:
        """Return the rows of x in 8 bits."""
        return quantize_rows(x, form=self.input_form)

    def backward(self, grad: Tensor, term: Term | None = None) -> Tensor:
        """Return e(grad * scale) q and the term."""
        return self.backward_prepared(quantize_rows(grad, self.scale, form=self.gradient_form), term)

    def transposed(self) -> Tensor:
        """Return q^T [K, N], on CUDA in scratch memory, contiguous."""
        if not self.qweight.is_cuda:
            return self.qweight.t()
        from wishbone.ops.frozen_linear.triton import transpose_bytes

        shape = (self.in_features, self.out_features)
        return transpose_bytes(self.qweight, scratch(shape, self.dtype, self.qweight.device))


def check_codes(qweight: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
    """Refuse codes and scales of another form.

    Raises:
        ValueError: the codes are no contiguous matrix of `dtype`, or the scales are not float32.
    """
    if qweight.dtype != dtype or qweight.dim() != 2 or not qweight.is_contiguous() or scale.dtype != torch.float32:
        raise ValueError(
            f"an 8-bit weight is a contiguous {str(dtype).removeprefix('torch.')} matrix with float32 scales, not "
            f"{qweight.dtype} of shape {tuple(qweight.shape)} with {scale.dtype}"
        )
