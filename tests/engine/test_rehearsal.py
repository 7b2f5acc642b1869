"""What the rehearsal reckons with: room for layers, the budget of a row, the longest pair of a data set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from wishbone.engine import rehearsal
from wishbone.engine.probe import Timing, Trial, made_up_row
from wishbone.engine.rehearsal import _best_budget, _faster_budget, _measured_room, _whole_rows
from wishbone.engine.row_lengths import longest_of_stream, most_in_a_row, pair_tokens
from wishbone.policy.activations import EVERYTHING, NOTHING, Room

LAYERS, BASE, LAYER, FIXED = 8, 10.0, 5.0, 30_000.0


class Card(Trial):
    """A GPU of so many bytes, on which a row takes what memory is reckoned by, and the time of its work."""

    def __init__(self, memory: float, row_seconds: float = 0.0) -> None:
        self.memory, self.row_seconds = memory, row_seconds
        room: Room | None = Room(1.0, 1.0, 1.0)
        activations: Any = SimpleNamespace(room=room, layers=[None] * LAYERS)
        policy: Any = SimpleNamespace(activations=activations, device=torch.device("cuda"))
        self.policy = policy

    def kept(self, tokens: int) -> int:
        room = self.activations.room
        return LAYERS if room is EVERYTHING else 0 if room is None else max(0, min(LAYERS, room.layers(tokens)))

    def peak(self, tokens: int) -> int:
        peak = FIXED + tokens * (BASE + self.kept(tokens) * LAYER)
        if peak > self.memory:
            raise torch.OutOfMemoryError
        return int(peak)

    def timing(self, tokens: int) -> Timing:
        """The host takes `row_seconds` to launch a row, the GPU 4 seconds a token, less where layers are kept."""
        self.peak(tokens)
        on_gpu = tokens * (4 - self.kept(tokens) / LAYERS)
        return Timing(max(self.row_seconds, on_gpu), self.row_seconds)


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


@pytest.mark.parametrize("memory", [10_000_000.0, 250_000.0, 120_000.0, 80_000.0])
def test_what_a_kept_layer_takes_is_measured_where_a_row_of_the_usual_length_cannot_be_kept(
    memory: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rehearsal, "usable_bytes", lambda device: memory)
    assert _measured_room(Card(memory), 4096) == Room(memory - FIXED, BASE, LAYER)


def test_nothing_is_kept_where_not_even_a_short_row_can_be(monkeypatch: pytest.MonkeyPatch):
    memory = FIXED + 4096 * BASE
    monkeypatch.setattr(rehearsal, "usable_bytes", lambda device: memory)
    monkeypatch.setattr(rehearsal, "LEAST_PROBE", 2048)
    assert _measured_room(Card(memory), 4096) == Room(4096 * BASE, BASE, float("inf"))
    assert _measured_room(Card(memory - 1), 4096) is None


@pytest.mark.parametrize("treatment", [None, NOTHING, EVERYTHING])
def test_rows_whose_treatment_is_given_count_as_they_are(treatment: Room | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rehearsal, "usable_bytes", lambda device: 1e7)
    card = Card(1e7)
    card.activations.room = treatment
    base = BASE + (LAYERS * LAYER if treatment is EVERYTHING else 0)
    assert _measured_room(card, 4096) == Room(1e7 - FIXED, base, 0.0)
    assert card.activations.room is treatment


@pytest.mark.parametrize(
    ("row_seconds", "budget"),
    [
        (0.0, 2944),
        (9000.0, 2944),  # the GPU takes 7,452 s for 2,484 tokens, the mean of rows that are kept whole: 3.6 s a token
        (10_000.0, 8192),  # 4.03 s a token where 6,947 tokens, 2 of 8 layers kept, take 26,051 s: 3.75 s a token
        (20_000.0, 8192),
        (25_000.0, 14_400),  # the host takes nearly as long as the GPU: no row for what a second one would hold
    ],
)
def test_rows_are_kept_whole_unless_the_host_is_slow(row_seconds: float, budget: int):
    room = Room(150_000, BASE, LAYER)
    card = Card(FIXED + room.total, row_seconds)
    card.activations.room = room
    pairs = np.full(100, 900)
    pairs[:8] = 1800
    assert _whole_rows(room, LAYERS) == 2944  # 2944 * (10 + 8 * 5) = 147k
    assert most_in_a_row(pairs, 8) == 14_400 < room.tokens()
    assert _faster_budget(card, pairs, 8, 8192) == budget


def test_rows_that_do_not_fit_are_not_timed():
    card = Card(FIXED + 100_000)
    card.activations.room = Room(150_000, BASE, LAYER)  # more than there is
    assert _faster_budget(card, np.full(100, 900), 8, 8192) == 8192
    card.activations.room = Room(95_000, BASE, LAYER)
    assert _faster_budget(card, np.full(100, 900), 8, 8192) == 1792


def test_rows_that_are_all_kept_stay_as_they_are():
    card = Card(1e9)
    card.activations.room = Room(1e9, BASE, LAYER)
    assert _faster_budget(card, np.full(100, 900), 8, 7200) == 7200


def test_a_model_that_nothing_can_be_kept_of_takes_the_usual_rows():
    room = Room(9000, 1.0, float("inf"))
    assert _best_budget(room, layers=4, usual=8192, most=32768) == 8192
    assert _whole_rows(room, 4) == 0


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
