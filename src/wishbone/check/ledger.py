"""What is kept of each pair, in about forty bytes, and what is found by comparing pairs with each other."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wishbone.check.kinds import CONTRADICTION, DUPLICATE, HELD_OUT, KINDS
from wishbone.check.places import Places
from wishbone.check.written import written
from wishbone.data.repeats import digest, find_repeats, pair_key

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_BIT = {name: 1 << number for number, name in enumerate(KINDS)}


def prompt_hash(pair: Mapping[str, Any], images: bytes = b"") -> int:
    """A hash of 64 bits of a pair's prompt, without the white space around it, and of what stands for its images."""
    return int.from_bytes(_with_images(_digest(written(pair["prompt"], "user").strip()), images)[:8])


_SIDES = (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))


def _digest(text: str) -> bytes:
    return digest(text.encode("utf-8", "surrogatepass"))


def _with_images(prompt: bytes, images: bytes) -> bytes:
    return digest(prompt + images) if images else prompt


class Ledger:
    """Keys, lengths, faults and places of pairs, in the order in which they were added."""

    def __init__(self) -> None:
        self.places = Places()
        self._keys = array("Q")
        self._prompts = array("Q")
        self._faults = array("I")
        self._lengths = {name: array("I") for name in ("prompt", "chosen", "rejected")}

    def __len__(self) -> int:
        return len(self._keys)

    def add(
        self,
        pair: Mapping[str, Any],
        place: str,
        faults: Iterable[str],
        lengths: tuple[int, int, int],
        images: bytes = b"",
    ) -> None:
        """Keep the next pair.

        Args:
            pair: prompt, chosen, rejected.
            place: where it stands.
            faults: keys of `KINDS`.
            lengths: of prompt, chosen, rejected.
            images: what stands for the images of the prompt.
        """
        self.places.add(place)
        prompt, *completions = (_digest(written(pair[side], alone)) for side, alone in _SIDES)
        self._keys.append(pair_key(_with_images(prompt, images), *completions))
        self._prompts.append(prompt_hash(pair, images))
        self._faults.append(sum(_BIT[name] for name in set(faults)))
        for column, length in zip(self._lengths.values(), lengths, strict=True):
            column.append(length)

    def lengths(self, side: str) -> Counts:
        """Of "prompt", "chosen" or "rejected": [pairs], int64."""
        return np.frombuffer(self._lengths[side], dtype=np.uint32).astype(np.int64)

    def lengths_of(self, index: int) -> tuple[int, int, int]:
        """Lengths of prompt, chosen, rejected of one pair."""
        prompt, chosen, rejected = (column[index] for column in self._lengths.values())
        return prompt, chosen, rejected

    def has(self, name: str) -> Flags:
        """The pairs with a fault: [pairs]."""
        flags: Flags = (np.frombuffer(self._faults, dtype=np.uint32) & _BIT[name]) != 0
        return flags

    def of_pair(self, index: int) -> tuple[str, ...]:
        """The faults of one pair."""
        return tuple(name for name, bit in _BIT.items() if self._faults[index] & bit)

    def compare(self, held_out: Hashes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Mark duplicates, contradictions and pairs whose prompt is held out.

        Args:
            held_out: hashes of the prompts of held-out pairs.

        Returns:
            Duplicates as (first, later), contradictions as (earlier side's first, other side's first), by index.
        """
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        found = find_repeats(keys)
        self._mark(DUPLICATE, np.array([later for _, later in found.duplicates], dtype=np.intp))
        self._mark(CONTRADICTION, np.flatnonzero(_among(keys >> 1, found.contradicted)))
        prompts = np.frombuffer(self._prompts, dtype=np.uint64)
        self._mark(HELD_OUT, np.flatnonzero(_among(prompts, held_out)))
        return found.duplicates, found.contradictions

    def _mark(self, name: str, indices: npt.NDArray[np.intp]) -> None:
        faults = np.frombuffer(self._faults, dtype=np.uint32)
        faults[indices] |= np.uint32(_BIT[name])

    def first_places(self, name: str, count: int) -> tuple[str, ...]:
        """The places of the first pairs with a fault."""
        return tuple(self.places[index] for index in np.flatnonzero(self.has(name))[:count].tolist())


def _among(hashes: npt.NDArray[np.integer[Any]], wanted: npt.NDArray[np.integer[Any]]) -> Flags:
    """Which hashes are among the wanted ones. By sorting: numpy 2.0 may choose a table, whose size then overflows."""
    return np.isin(hashes, wanted, kind="sort")
