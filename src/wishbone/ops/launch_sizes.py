"""Sizes of kernel launches, in plain integers.

Triton's own `cdiv` and `next_power_of_2` take the host 2 us a call outside of kernels, as long as the rest of a short
launch's bookkeeping.
"""

from __future__ import annotations


def tiles(count: int, size: int) -> int:
    """Return how many tiles of `size` cover `count` elements."""
    return -(-count // size)


def power_of_two(least: int) -> int:
    """Return the smallest power of two that is not below `least`, which is 1 or more."""
    return 1 << (least - 1).bit_length()
