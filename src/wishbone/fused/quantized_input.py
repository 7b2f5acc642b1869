"""Inputs of 8-bit layers, quantized by the norm that writes them.

8-bit layers with a scale a row multiply with the rows of their input in e4m3 or, rotated, in int8. Quantizing is a pass
over what an RMSNorm mostly wrote a moment before, and `rms_norm_quantize` does both in one. Which norm is read by which
layer is the model family's business, so it is seen as the model runs:

    a norm      leaves its output, and with it the rows if a layer has asked for them since the norm's last call
    a layer     whose input is the output that was left, unchanged since, takes the rows, and so asks for the next

So the first call of a norm quantizes nothing, nor does one after a call whose output no 8-bit layer read. The rows are
those that the layer would have made, bit by bit; where none wait for it, it makes them.
"""

from __future__ import annotations

from weakref import ReferenceType, ref

from torch import Tensor, nn

from wishbone.ops.fp8_quantize import LockstepRows, QuantizedRows, RowForm
from wishbone.ops.frozen_linear import FrozenWeight
from wishbone.ops.lora_linear import compute_dtype

Rows = QuantizedRows | LockstepRows
"""Of one input, or of the policy's and the reference's."""


class QuantizedInput:
    """The output of the last norm, held weakly, and its quantized rows if they were made."""

    def __init__(self) -> None:
        self._asked: dict[nn.Module, RowForm] = {}
        self.clear()

    def clear(self) -> None:
        """Drop the stored output."""
        self._left: tuple[nn.Module, ReferenceType[Tensor], int] | None = None
        self._rows: Rows | None = None

    def begin(self, norm: nn.Module) -> RowForm | None:
        """Drop the stored output as a norm begins; return the form of rows that was requested since its last call."""
        self.clear()
        return self._asked.pop(norm, None)

    def leave(self, norm: nn.Module, output: Tensor, rows: Rows | None) -> None:
        """Note a norm's output, and its rows where they were made."""
        if not output.is_inference():  # these have no version, so that a change would go unseen
            self._left, self._rows = (norm, ref(output), output._version), rows

    def take(self, x: Tensor, weight: FrozenWeight) -> Rows | None:
        """Return the rows of `x`, once, if they are what `weight` multiplies with and were left; None if not."""
        if weight.input_form is None or compute_dtype(x) != x.dtype or self._left is None:
            return None
        norm, output, version = self._left
        if output() is not x or version != x._version:
            return None
        self._asked[norm] = weight.input_form
        rows, self._rows = self._rows, None
        return rows
