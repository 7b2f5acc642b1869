"""The policy's and the reference's tensor, and what the first differs from the second by, in a tensor of its own."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from wishbone.ops.fp8_quantize import LockstepRows


class PolicyAndReference(NamedTuple):
    """One result for policy and reference.

    Attributes:
        policy: about reference + difference, rounded.
        reference: the reference's.
        difference: policy - reference, rounded by itself.
    """

    policy: Tensor
    reference: Tensor
    difference: Tensor


class GatedProduct(NamedTuple):
    """A result as the frozen layer after it takes it.

    Attributes:
        policy: rounded.
        reference, difference: as in `PolicyAndReference`, or None where 8-bit rows were made of them.
        rows: both of them in 8 bits, or None.
    """

    policy: Tensor
    reference: Tensor | None
    difference: Tensor | None
    rows: LockstepRows | None
