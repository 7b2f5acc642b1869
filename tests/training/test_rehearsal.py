"""What the rehearsal reckons with: room for layers, the budget of a row, the longest pair of a data set."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from wishbone.model.activations import Room
from wishbone.training.rehearsal import _best_budget, longest_of_stream, made_up_row, most_in_a_row, pair_tokens


@pytest.mark.parametrize(
    ("total", "budget"),
    [
        (1e9, 32768),  # 32768 * (1 + 4 * 2) = 295k: everything is kept
        (200_000, 16384),  # 147k fit, 295k do not
        (74_000, 8192),
        (9000, 8192),  # layers are recomputed, the usual number of tokens fits
        (5000, 4992),  # not even that: what fits, in whole blocks
    ],
)
def test_rows_are_as_long_as_can_be_kept(total: float, budget: int):
    assert _best_budget(Room(total, 1.0, 2.0), layers=4, usual=8192, most=32768) == budget


def test_a_model_that_nothing_can_be_kept_of_takes_the_usual_rows():
    assert _best_budget(Room(9000, 1.0, float("inf")), layers=4, usual=8192, most=32768) == 8192


def test_rows_are_no_longer_than_the_longest_step():
    assert most_in_a_row(np.array([5, 90, 30, 70]), 2) == 160
    assert most_in_a_row(np.array([5, 90]), 8) == 95
    assert _best_budget(Room(1e9, 1.0, 2.0), layers=4, usual=8192, most=300) == 300


def test_rows_of_steps_that_are_not_kept_are_no_shorter_than_usual():
    assert _best_budget(Room(74_000, 1.0, 2.0), layers=4, usual=8192, most=19_398) == 8192
    assert _best_budget(Room(160_000, 1.0, 2.0), layers=4, usual=8192, most=19_398) == 9699


def test_the_tokens_of_pairs_after_truncation():
    rows = [
        {"prompt_ids": [1] * 5, "chosen_ids": [2] * 10, "rejected_ids": [3] * 2},
        {"prompt_ids": [1] * 9, "chosen_ids": [2] * 3, "rejected_ids": [3] * 4},
    ]
    dataset = Dataset.from_list(rows)
    assert pair_tokens(dataset, None).tolist() == [17, 16]
    assert pair_tokens(dataset, 10).tolist() == [12, 11]  # 5 + 5 + 2, and 9 + 1 + 1
    assert longest_of_stream(10) == 19
    assert longest_of_stream(None) == 1024


@pytest.mark.parametrize(("tokens", "longest"), [(3, 3), (8, 50), (100, 7), (4096, 127), (4096, 4096)])
def test_a_made_up_row_has_the_tokens_asked_for_and_no_longer_pairs_than_the_run(tokens: int, longest: int):
    pairs = made_up_row(tokens, longest, 50)
    assert tokens - 3 < sum(pair.row_tokens for pair in pairs) <= tokens
    assert max(pair.row_tokens for pair in pairs) <= longest
    assert max(len(ids) for pair in pairs for ids in (pair.chosen, pair.rejected)) <= (longest + 1) // 2 + 1
    assert max(max(pair.chosen + pair.rejected) for pair in pairs) < 50
