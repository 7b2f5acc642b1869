"""A hash of a tensor's bytes that is computed where the tensor lies, and is the same on every device.

The bytes are read as little-endian 64-bit words x_0, x_1, ..., padded with zeros to whole blocks of 4096. With x' the
upper half of a word (x >> 32, signed) and fixed, mixed, odd multipliers a, b, c, d for the places in a block and
A, B, C, D for the blocks, the hash is four sums modulo 2^64,

    sum_j A_j sum_k a_k x_jk    sum_j B_j sum_k b_k x_jk    sum_j C_j sum_k c_k x'_jk    sum_j D_j sum_k d_k x'_jk

Integer addition is exact in any order, so threads, pieces and devices do not change it. A change of one word changes
the first two sums for certain, odd numbers being invertible. Changes that cancel in a sum need luck: below 2^-31 a sum,
and a change of either half of a word must cancel in two of them. The upper halves have sums of their own because
changes of top bits alone (signs of float64 values) cancel in the first two sums whenever there is an even number of
them.

This protects against accidents (other weights, another order, a bad copy), not against somebody who constructs
weights to collide: the multipliers are known. Zeros hash to zero at any length, so compare the shape too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 4096
"""Words in a block."""

_SUMS = 4


def tensor_hashes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Return the four sums of each tensor, unsigned 64-bit; the host waits once for each device.

    Args:
        tensors: of any dtype, shape, strides and device; equal elements in equal order give
            equal hashes, whatever the strides.
    """
    sums: list[Tensor] = []
    tables: dict[torch.device, _Tables] = {}
    for tensor in tensors:
        if tensor.device not in tables:
            tables[tensor.device] = _Tables(tensor.device)
        sums.append(_sums(tensor, tables[tensor.device]))
    rows: list[tuple[int, ...]] = [()] * len(sums)
    for device in tables:
        mine = [i for i, row in enumerate(sums) if row.device == device]
        for i, row in zip(mine, torch.stack([sums[i] for i in mine]).cpu().tolist(), strict=True):
            rows[i] = tuple(value % 2**64 for value in row)
    return rows


@torch.no_grad()
def _sums(tensor: Tensor, tables: _Tables) -> Tensor:
    """The four sums of one tensor, int64 [4], on its device."""
    words, rest = _words(tensor)
    table = tables.places
    total = table.new_zeros(_SUMS)
    whole = words.numel() // BLOCK
    piece = 16 if tensor.device.type == "cpu" else 4096  # what a core's cache holds, or 128 MiB of a GPU
    blocks = tables.blocks(whole + 1)
    for first in range(0, whole, piece):
        last = min(first + piece, whole)
        part = words[first * BLOCK : last * BLOCK].view(-1, BLOCK)
        total += (_block_sums(part, table) * blocks[:, first:last]).sum(1)
    tail = torch.cat([words[whole * BLOCK :], rest])
    padded = torch.nn.functional.pad(tail, (0, BLOCK - tail.numel())).view(1, BLOCK)
    total += (_block_sums(padded, table) * blocks[:, whole:]).sum(1)
    return total


def _block_sums(words: Tensor, table: Tensor) -> Tensor:
    """Sums over the places of each block, int64 [4, blocks]."""
    upper = words >> 32
    factors = (words, words, upper, upper)
    return torch.stack([(x * row).sum(1) for x, row in zip(factors, table, strict=True)])


def _words(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes of a tensor as int64 words, and the remaining bytes, if any, as one padded word."""
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()
    whole = data.numel() // 8 * 8
    words, rest = data[:whole].view(torch.int64), data[whole:]
    if not rest.numel():
        return words, words[:0]
    return words, torch.nn.functional.pad(rest, (0, 8 - rest.numel())).view(torch.int64)


class _Tables:
    """Multipliers on a device: of the places in a block, [4, BLOCK], and of as many blocks as were asked for.

    A model has hundreds of tensors of a few sizes, and making multipliers takes as many launches as using them.
    """

    def __init__(self, device: torch.device) -> None:
        self.places = _multipliers(BLOCK, 0, device)
        self._blocks = _multipliers(1, 1, device)

    def blocks(self, count: int) -> Tensor:
        """Return those of the first `count` blocks, [4, count]."""
        if self._blocks.shape[1] < count:
            self._blocks = _multipliers(1 << (count - 1).bit_length(), 1, self.places.device)
        return self._blocks[:, :count]


def _multipliers(count: int, level: int, device: torch.device) -> Tensor:
    """Odd 64-bit multipliers, int64 [4, count]: a counter through the finalizer of SplitMix64 (Steele et al. 2014)."""
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=device).repeat(_SUMS, 1)
    counter += torch.arange(_SUMS, device=device)[:, None] * 2**40 + level * 2**50
    mixed = counter * _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    odd: Tensor = (mixed ^ _shifted(mixed, 31)) | 1
    return odd


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros."""
    shifted: Tensor = (values >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
