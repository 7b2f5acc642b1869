"""Rows: every pair once, none over budget unless alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wishbone.data.packing import pack_rows


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 600))
def test_every_pair_once_and_within_budget(lengths: list[int], budget: int) -> None:
    rows = pack_rows(lengths, budget)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(row for row in rows)
    assert all(sum(lengths[i] for i in row) <= budget or len(row) == 1 for row in rows)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(100, 300))
def test_no_two_rows_could_be_one(lengths: list[int], budget: int) -> None:
    filled = [sum(lengths[i] for i in row) for row in pack_rows(lengths, budget)]
    assert all(a + b > budget for n, a in enumerate(filled) for b in filled[n + 1 :])


def test_order_is_kept_where_nothing_is_lost() -> None:
    assert pack_rows([3, 3, 3, 3], 6) == [[0, 1], [2, 3]]
    assert pack_rows([5, 1, 4], 10) == [[0, 1, 2]]
    assert pack_rows([], 10) == []
