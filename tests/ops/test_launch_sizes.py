"""Sizes of launches are those that Triton's own functions give."""

from __future__ import annotations

import pytest

from wishbone.ops.launch_sizes import power_of_two, tiles


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 8192])
def test_tiles_cover_everything_and_none_is_empty(count: int) -> None:
    assert tiles(count, 32) * 32 >= count > (tiles(count, 32) - 1) * 32


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 127, 128, 129, 2**20 + 1])
def test_the_next_power_of_two(number: int) -> None:
    triton = pytest.importorskip("triton")
    assert power_of_two(number) == triton.next_power_of_2(number)
    assert tiles(number, 7) == triton.cdiv(number, 7)
