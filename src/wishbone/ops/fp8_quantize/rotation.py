r"""A rotation that spreads what is large in a row over its neighbours: Hadamard matrices along the diagonal.

A row of a language model's activations has a few elements far larger than the rest. With one scale a row they leave the
rest few of int8's 255 values. Multiplied by an orthogonal matrix H / sqrt(B) of +-1 / sqrt(B), each element becomes a
sum of B elements with signs, so that none stands out, and W x = (W H / sqrt(B)) (H x / sqrt(B)) stays what it was
(QuaRot, Ashkboos et al. 2024, arXiv:2404.00456, section 3). Sylvester's matrices are symmetric:

    H_1 = (1),    H_2n = [[H_n, H_n], [H_n, -H_n]]

Blocks of at most 128 are multiplied by tensor cores in the pass that quantizes.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LARGEST_BLOCK = 128


def rotation_block(columns: int) -> int:
    """Return the block for rows of this size: the largest power of two that divides it, at most 128."""
    return min(columns & -columns, LARGEST_BLOCK)


def rotated(x: Tensor, block: int) -> Tensor:
    """Return H of each block of x [..., columns], not divided by sqrt(block); computed in float32, or float64 of it."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    if block == 1:
        return precise
    signs = hadamard(block, precise.dtype, x.device)
    blocks: Tensor = precise.unflatten(-1, (-1, block)) @ signs
    return blocks.flatten(-2)


def rotated_back(x: Tensor, block: int) -> Tensor:
    """Return x H / sqrt(block), [..., columns], which undoes a rotation that was divided by sqrt(block)."""
    return rotated(x, block).div_(block**0.5)


@functools.cache
def hadamard(block: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return H [block, block] of +1 and -1, for a power of two."""
    with torch.inference_mode(False):
        signs = torch.ones(1, 1, dtype=dtype)
        while signs.shape[0] < block:
            signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
        return signs.to(device)
