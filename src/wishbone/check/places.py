"""The place of each pair in its source, such as "line 17", in nine bytes."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right

_NUMBERED = re.compile(r"(.*?)(\d+)( \(line \d+\))?", re.DOTALL)


class Places:
    """Places by their order; what stands before the number is kept once as long as it stays the same."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._starts: list[int] = []
        self._prefixes: list[str] = []

    def add(self, place: str) -> None:
        """Keep the next place, a text that ends with a number."""
        match = _NUMBERED.fullmatch(place)
        prefix, number = (match[1], int(match[2])) if match else (place, -1)
        if not self._prefixes or self._prefixes[-1] != prefix:
            self._starts.append(len(self._numbers))
            self._prefixes.append(prefix)
        self._numbers.append(number)

    def __getitem__(self, index: int) -> str:
        prefix = self._prefixes[bisect_right(self._starts, index) - 1]
        number = self._numbers[index]
        return prefix if number < 0 else f"{prefix}{number}"

    def __len__(self) -> int:
        return len(self._numbers)
