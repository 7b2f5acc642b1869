r"""What every form of a frozen weight W [N, K] can do: y = x W^T, dx = g W.

A frozen weight has no gradient, so training an adapter needs only these two products, and W may be stored in any form
that gives them. Layers that read the same input share its preparation (rows in 8 bits):

    prepared = weight.prepare(x)      # once for q, k and v
    y = weight.forward(prepared)
    dx = weight.backward(g)

These are plain tensors; `frozen_linear` and `lora_linear` make functions of autograd out of the products.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from wishbone.ops.fp8_quantize import QuantizedRows, RowForm

Prepared = Tensor | QuantizedRows
InputForm = RowForm | None
"""How the rows of an input are brought to 8 bits; None for weights that take it as it is."""


class FrozenWeight(Protocol):
    """A weight [out_features, in_features] that is not trained.

    Attributes:
        out_features: N.
        in_features: K.
        input_form: what `prepare` makes. Weights that read one input may share it if this is equal.
    """

    @property
    def out_features(self) -> int: ...  # noqa: D102

    @property
    def in_features(self) -> int: ...  # noqa: D102

    @property
    def input_form(self) -> InputForm: ...  # noqa: D102

    def prepare(self, x: Tensor) -> Prepared:
        """Return x [T, K] in the form that `forward` takes."""
        ...

    def forward(self, prepared: Prepared, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + bias, [T, N], in the dtype of x."""
        ...

    def backward(self, grad: Tensor) -> Tensor:
        """Return grad W, [T, K], in the dtype of grad [T, N]."""
        ...

    def dense(self) -> Tensor:
        """Return the values that W stands for, [N, K], in 16 bits if they are stored so, else float32."""
        ...
