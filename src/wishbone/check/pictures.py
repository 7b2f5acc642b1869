"""Images of pairs as `wishbone check` looks at them: there, whole, not too large, and which files they are.

Each file is read once: its content is hashed, its beginning and its end are looked at. It is unpacked only where its
end is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wishbone.data.images import size_and_digest
from wishbone.data.repeats import digest
from wishbone.errors import RequestError


@dataclass(frozen=True)
class Pictures:
    """The images of one pair.

    Attributes:
        key: bytes that differ if the files do; empty without images.
        sizes: width and height in pixels of those that can be read.
        problem: why one cannot be read; empty if all can.
    """

    key: bytes = b""
    sizes: Sequence[tuple[int, int]] = ()
    problem: str = ""


def look_at(images: Sequence[Mapping[str, Any]]) -> Pictures:
    """Look at the images of a pair, each with its bytes, or with its path and folder."""
    key, sizes, problem = b"", [], ""
    for image in images:
        try:
            size, of_file = size_and_digest(image)
        except RequestError as error:
            problem = problem or str(error)
            key += digest(str(image.get("path")).encode("utf-8", "backslashreplace"))
        else:
            sizes.append(size)
            key += of_file
    return Pictures(key, sizes, problem)


@dataclass
class PictureTotals:
    """Images of all pairs.

    Attributes:
        pairs: how many pairs have images.
        images: how many images can be read.
        smallest, largest: width and height in pixels of those with the fewest and the most; None without any.
    """

    pairs: int = 0
    images: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None

    def add(self, found: Pictures) -> None:
        """Count the images of another pair."""
        self.pairs += bool(found.key)
        self.images += len(found.sizes)
        for size in found.sizes:
            self.smallest = size if self.smallest is None else min(self.smallest, size, key=_pixels)
            self.largest = size if self.largest is None else max(self.largest, size, key=_pixels)


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]
