"""A frozen weight in 16 or 32 bits, as it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.frozen_linear.weight import InputForm, Prepared


class DenseWeight:
    """W as a plain matrix.

    Args:
        weight: [N, K]; products are taken in the dtype of the inputs.
    """

    input_form: InputForm = "plain"

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        self.out_features, self.in_features = weight.shape

    def prepare(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def forward(self, prepared: Prepared, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + bias."""
        assert isinstance(prepared, Tensor)
        return F.linear(prepared, self.matrix(prepared.dtype), bias)

    def backward(self, grad: Tensor) -> Tensor:
        """Return grad W."""
        return grad @ self.matrix(grad.dtype)

    def dense(self) -> Tensor:
        """Return W itself."""
        return self.weight

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return W [N, K] in `dtype`, for a product that accumulates."""
        return self.weight.to(dtype)
