"""Frozen weights whose products are taken with W as a matrix: as it is, or turned into one before each product."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.frozen_linear.weight import InputForm, Prepared


class MatrixWeight(ABC):
    """A weight that gives W as a matrix in the dtype of the arithmetic; the input is not rounded.

    Args:
        out_features: N.
        in_features: K.
    """

    input_form: InputForm = None

    def __init__(self, out_features: int, in_features: int) -> None:
        self.out_features, self.in_features = out_features, in_features

    @abstractmethod
    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return W [N, K] in `dtype`, perhaps in scratch memory that the next product of any weight overwrites."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the values that W stands for, [N, K], in memory that stays."""

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


class DenseWeight(MatrixWeight):
    """W as a plain matrix.

    Args:
        weight: [N, K]; products are taken in the dtype of the inputs.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(*weight.shape)
        self.weight = weight.detach()

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return W [N, K] in `dtype`."""
        return self.weight.to(dtype)

    def dense(self) -> Tensor:
        """Return W itself."""
        return self.weight
