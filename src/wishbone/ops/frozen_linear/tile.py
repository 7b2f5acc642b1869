"""How a matrix product of int8 is cut into tiles."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """How a product is cut: a tile of the result, how much of the sum a step takes, and how a program runs it."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def shared_bytes(self) -> int:
        """Shared memory of the factors under way, and at the end of the result, rotated."""
        return max((self.rows + self.columns) * self.depth * self.stages, 2 * self.rows * self.columns + 2 * 128**2)
