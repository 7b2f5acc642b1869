r"""The reference's output of a layer, computed together with the policy's: the same frozen weights, read once for both.

    y_ref = W x_ref + b + l_ref B_ref^T            y = W x + b + l B^T

In 8 bits both inputs would be rounded, each for itself, and log pi - log pi_ref would be mostly the difference of two
roundings. So the reference's input is rounded, and then what the policy's differs by (e(.) as in
`frozen_linear/eight_bit.py`):

    y_ref = W e(x_ref) + b                         y = y_ref + ( W e(x - x_ref) + l B^T )

These are as many products as two layers take. What rounding leaves in a reward is the rounding of a small difference,
and where the policy is the reference, y is y_ref, bit by bit. Nothing of the reference's has a gradient.

Where the difference of the inputs comes in a tensor of its own, d = x - x_ref, that of the outputs leaves in one, for
weights of every form; y is formed from it, and l = A x as always:

    d_y = W e(d) + l B^T                           y = y_ref + d_y
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from wishbone.ops.fp8_quantize import LockstepRows
from wishbone.ops.frozen_linear import DenseWeight, FrozenWeight, MatrixWeight
from wishbone.ops.lora_linear.adapter import Adapter
from wishbone.ops.lora_linear.precision import LowTerm, product_and_terms
from wishbone.ops.low_rank_add import add_low_rank_


@dataclass
class ReferenceCall:
    """A call of layers by the reference, computed together with the policy's.

    Attributes:
        x: input [T, K].
        adapters: frozen adapters of the reference, or None for each layer.
        rows: what `quantize_both` makes of the policy's input and `x`, where that was made together with them.
        difference: d [T, K], what the policy's input differs by, where it is carried (`carried_difference`); the
            reference then has no adapters.
        outputs: y_ref [T, N_i] of each layer, once the call has run; they may be views of one tensor.
        differences: d_y [T, N_i] of each layer, likewise, where d is carried.
    """

    x: Tensor
    adapters: Sequence[Adapter | None]
    rows: LockstepRows | None = None
    difference: Tensor | None = None
    outputs: tuple[Tensor, ...] = field(default=())
    differences: tuple[Tensor, ...] = field(default=())

    def tile(self, rows: slice) -> ReferenceCall:
        """Return the call with some of the rows of the input; it makes its own 8-bit rows."""
        difference = None if self.difference is None else self.difference[rows]
        return ReferenceCall(self.x[rows], self.adapters, difference=difference)

    def leave(self, *outputs: Tensor, differences: Sequence[Tensor] = ()) -> None:
        """Note the outputs of the call."""
        self.outputs, self.differences = outputs, tuple(differences)


def eight_bit_in_lockstep(
    weight: FrozenWeight, rows: LockstepRows, base: Tensor, terms: Sequence[LowTerm], reference_terms: Sequence[LowTerm]
) -> tuple[Tensor, Tensor]:
    """Return y and y_ref of an 8-bit layer, [T, N].

    Args:
        weight: W.
        rows: both inputs.
        base: W e(x_ref) + b.
        terms: of the policy's adapters.
        reference_terms: of the reference's.
    """
    y = weight.forward(rows.difference)
    everywhere = sum(columns.stop - columns.start for columns, _, _ in terms) == y.shape[1]
    for columns, low, factor in terms:
        add_low_rank_(y[:, columns], low, factor, base=base[:, columns] if everywhere else None)
    if not everywhere:
        y += base
    if not reference_terms:
        return y, base
    reference = base.clone()
    for columns, low, factor in reference_terms:
        add_low_rank_(reference[:, columns], low, factor)
    return y, reference


def matrix_in_lockstep(
    weight: FrozenWeight,
    x: Tensor,
    reference: Tensor,
    bias: Tensor | None,
    terms: Sequence[LowTerm],
    reference_terms: Sequence[LowTerm],
) -> tuple[Tensor, Tensor]:
    """Return y and y_ref of a layer whose weight is a matrix, [T, N]; it is turned into one once for both."""
    assert isinstance(weight, MatrixWeight)
    matrix = DenseWeight(weight.matrix(x.dtype))
    y_reference = product_and_terms(matrix, reference, bias, reference_terms)
    return product_and_terms(matrix, x, bias, terms), y_reference
