"""Rows of processes that share a sharded model: as many in each, the longest first."""

from __future__ import annotations

import random

from wishbone.data.packing import alongside, pack_rows


def test_a_process_with_fewer_rows_divides_its_pairs() -> None:
    """The step that was measured: a second row beside nothing took half as long again as the whole step."""
    lengths = [2000, 2100, 2061, 1900]
    one = pack_rows(lengths, 8192)
    assert len(one) == 1
    two = alongside(one, lengths, 2)
    assert sorted(sum(lengths[i] for i in row) for row in two) == [4000, 4061]
    assert alongside([[2], [0, 1]], lengths, 2) == [[0, 1], [2]]
    assert alongside([], lengths, 2) == []
    assert alongside([[1]], lengths, 3) == [[1]]


def test_each_pair_is_in_one_row_and_none_grows_longer() -> None:
    chance = random.Random(0)
    for _ in range(200):
        lengths = [chance.randint(1, 900) for _ in range(chance.randint(1, 12))]
        rows = pack_rows(lengths, 1000)
        most = len(rows) + chance.randint(0, 3)
        found = alongside(rows, lengths, most)
        assert sorted(i for row in found for i in row) == list(range(len(lengths)))
        sums = [sum(lengths[i] for i in row) for row in found]
        assert len(found) <= most and sums == sorted(sums, reverse=True)
        assert max(sums) <= max(sum(lengths[i] for i in row) for row in rows)
