r"""Adding a small term to an element that was rounded: the definition.

An adapter adds d = (l F)_tn to y_tn = (x W^T)_tn. If y comes out of its product in bfloat16, it is a multiple of a step
u, 1/128 to 1/256 of y itself (in float16, 1/1024 to 1/2048). An adapter that is trained at DPO's learning rates mostly
adds less than u / 2, and rounding y + d to the nearest gives y: most of what the adapter does, and of the reward, is
lost. Here

    y + d is rounded up with probability (y + d - down) / u, else down,        E[result] = y + d

with "down" the multiple of u towards zero (stochastic rounding; Croci et al. 2022, "Stochastic rounding:
implementation, error analysis and applications", R. Soc. Open Sci. 9:211631). A product with the merged weights, which
rounds once, does the same on average, since x W^T can lie anywhere between two steps.

A hash of the bits of y and d decides, the upper half of 32 bits of

    a bits(d) + b bits(y)    mod 2^32,    a and b odd

(multiplicative hashing; Knuth, The Art of Computer Programming 3, section 6.4). For inputs that lie close together the
hash takes its values evenly, so sums of few elements are right, too. The same y and d are rounded the same way each
time and at every place: recomputing a layer gives the same result, and rows do not depend on each other. d = 0 leaves y
as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDED_AT_RANDOM = (torch.bfloat16, torch.float16)
"""Dtypes in which rounding to the nearest would lose what an adapter adds."""
MULTIPLIERS = (0x7FEB352D, 0x5BD1E995)
"""a and b: odd integers below 2^31 that mix bits well, from the hashes lowbias32 and MurmurHash2."""
SEED_MULTIPLIER = 0x31848BAB
"""Gives each seed another a; from the hash triple32."""


def add_low_rank_reference_(
    y: Tensor, low: Tensor, factor: Tensor, base: Tensor | None = None, total: Tensor | None = None
) -> Tensor:
    """Add low @ factor to y in place, and a base to both; as `add_low_rank_`."""
    if total is not None and base is not None:
        add_low_rank_reference_(y, low, factor)
        total.copy_(rounded_at_random(base, y.float()) if y.dtype in ROUNDED_AT_RANDOM else base + y)
        return y
    if y.dtype not in ROUNDED_AT_RANDOM:
        y.addmm_(low, factor)
        return y if base is None else y.add_(base)
    if base is not None:
        return y.copy_(rounded_at_random(base, y.float() + low.float() @ factor.float()))
    return y.copy_(rounded_at_random(y, low.float() @ factor.float()))


def rounded_at_random(y: Tensor, addend: Tensor, seed: int = 0) -> Tensor:
    """Return y + addend in the dtype of y, bfloat16 or float16, for an addend in float32.

    Each seed gives another rounding. Below 2^-14, where the steps of float16 no longer shrink, it is to the nearest.
    """
    exact = y.float()
    total = exact + addend
    unseen = unseen_bits(y.dtype)
    bits = (total.view(torch.int32) + (_hash(exact, addend, seed) & unseen)) & ~unseen
    return torch.where(total.isnan(), total, bits.view(torch.float32)).to(y.dtype)


def unseen_bits(dtype: torch.dtype) -> int:
    """Return the bits of float32 that a 16-bit dtype does not have, as a mask."""
    return round(torch.finfo(dtype).eps / torch.finfo(torch.float32).eps) - 1


def _hash(exact: Tensor, addend: Tensor, seed: int) -> Tensor:
    """Return 16 bits, sign-extended, that look random for different inputs; products wrap around."""
    first, second = MULTIPLIERS
    first = (first + 2 * seed * SEED_MULTIPLIER) % 2**31
    return addend.contiguous().view(torch.int32) * first + exact.view(torch.int32) * second >> 16
