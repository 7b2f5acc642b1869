"""Pairs that occur twice, and pairs that contradict each other, found by one number for each pair.

A pair's key is a hash of its prompt and of both completions in an order that does not depend on which one is chosen;
the lowest bit says which. Equal keys are duplicates, keys that differ in the lowest bit alone contradict each other.

    key = 2 h(prompt, min(chosen, rejected), max(chosen, rejected)) + [chosen > rejected]

With hashes of 63 bits, two of thirty million different pairs share one with a probability of 5e-5.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]


def digest(content: Any) -> bytes:
    """A fingerprint of 16 bytes of something that has bytes."""
    return blake2b(content, digest_size=16).digest()


def pair_key(prompt: bytes, chosen: bytes, rejected: bytes) -> int:
    """The key of a pair, 64 bits, from the digests of its sides."""
    swapped = chosen > rejected
    first, second = (rejected, chosen) if swapped else (chosen, rejected)
    return int.from_bytes(blake2b(prompt + first + second, digest_size=8).digest()) & ~1 | swapped


@dataclass(frozen=True)
class Repeats:
    """Pairs that are compared with each other, by index.

    Attributes:
        duplicates: (first, later), in the order of the later ones.
        contradictions: (earlier side's first, other side's first), in the order of the earlier ones.
        contradicted: keys without their lowest bit of pairs that contradict another one, [n], uint64.
    """

    duplicates: list[tuple[int, int]]
    contradictions: list[tuple[int, int]]
    contradicted: Keys


def find_repeats(keys: Keys) -> Repeats:
    """Compare pairs by their keys, [pairs], by sorting."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    begins = np.r_[True, sorted_keys[1:] != sorted_keys[:-1]][: len(keys)]
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))]
    later = np.flatnonzero(~begins)
    duplicates = sorted(zip(order[later].tolist(), first[later].tolist(), strict=True))
    swapped = np.flatnonzero(begins[1:] & (sorted_keys[1:] >> 1 == sorted_keys[:-1] >> 1))
    contradictions = sorted(
        (min(pair), max(pair)) for pair in zip(first[swapped].tolist(), order[swapped + 1].tolist(), strict=True)
    )
    contradicted = (sorted_keys[1:][swapped] >> 1).astype(np.uint64)
    return Repeats([(earlier, index) for index, earlier in duplicates], contradictions, contradicted)
