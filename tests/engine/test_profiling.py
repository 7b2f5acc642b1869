"""What profiling chooses from measurements: room for layers, the budget of a row, host memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from wishbone.data.batch import TokenizedPair
from wishbone.data.pair_images import PairImages
from wishbone.engine import fitting
from wishbone.engine.execution import EVERYTHING, NOTHING, Execution, Room
from wishbone.engine.fitting import longest_rows, measured_room
from wishbone.engine.probe import RowProbe, Timing, made_up_row
from wishbone.engine.profiling import faster_rows, fitted
from wishbone.engine.row_lengths import longest_of_stream, most_in_a_row, pair_tokens

LAYERS, BASE, LAYER, FIXED = 8, 10.0, 5.0, 30_000.0
OFFLOADED_BASE = 4.0
VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "profiling.json").read_text())["vectors"]
PAIRS = {(900, 1800): [900] * 92 + [1800] * 8, (300, 300): [300] * 100, (200, 6000): [200] * 99 + [6000]}
UNMEASURED = Execution(8192, Room(1.0, 1.0, 1.0), offload="as needed")


class Card(RowProbe):
    """A GPU of so many bytes, on which a row takes the memory of the equation, and the time of its work."""

    def __init__(self, memory: float, row_seconds: float = 0.0, curvature: float = 0.0) -> None:
        self.memory, self.row_seconds, self.curvature = memory, row_seconds, curvature
        policy: Any = SimpleNamespace(layers=[None] * LAYERS)
        self.policy = policy

    def kept(self, tokens: int, execution: Execution) -> int:
        return 0 if execution.room is None else execution.room.kept(tokens, LAYERS)

    def peak(self, tokens: int, execution: Execution) -> int | None:
        base = OFFLOADED_BASE if execution.offload == "always" else BASE
        bent = self.curvature * max(tokens - 4096, 0)
        peak = FIXED + tokens * (base + self.kept(tokens, execution) * LAYER) + bent
        return int(peak) if peak <= self.memory else None

    def at_rest(self) -> int:
        return int(FIXED)

    def timing(self, tokens: int, execution: Execution) -> Timing:
        """The host takes `row_seconds` to launch a row, the GPU 4 seconds a token, less where layers are kept."""
        if self.peak(tokens, execution) is None:
            raise torch.OutOfMemoryError
        on_gpu = tokens * (4 - self.kept(tokens, execution) / LAYERS)
        return Timing(max(self.row_seconds, on_gpu), self.row_seconds)


def asked(treatment: Any, budget: int) -> Execution:
    if treatment == "auto":
        return Execution(budget, UNMEASURED.room, offload="as needed")
    return Execution(budget) if treatment == "left" else Execution.treating(budget, treatment)


@pytest.mark.parametrize("one", VECTORS, ids=lambda one: "-".join(map(str, one.values())))
def test_what_is_chosen_is_what_was_chosen_before(one: dict[str, Any], caplog: pytest.LogCaptureFixture):
    *kinds, pairs_a_step = one["pairs"]
    tokens = np.array(PAIRS[tuple(kinds)])
    card = Card(one["memory"], one["row_seconds"], one["curvature"])
    start = asked(one["activations"], one["asked"])
    with caplog.at_level(logging.WARNING):
        found = fitted(card, start, lambda: 0.96 * card.memory, tokens, pairs_a_step, budget_fixed=one["fixed"])
    row = max(int(tokens.max()), min(found.token_budget, most_in_a_row(tokens, pairs_a_step)))
    got = found.token_budget, card.kept(row, found), found.offload, "does not fit" not in caplog.text
    assert got == (one["budget"], one["kept"], one["offload"], one["fits"])


def test_rows_are_halved_before_inputs_wait_in_host_memory(caplog: pytest.LogCaptureFixture):
    card, tokens = Card(60_000.0), np.full(100, 300)
    with caplog.at_level(logging.INFO):
        found = fitted(card, UNMEASURED, lambda: 0.96 * card.memory, tokens, 16, budget_fixed=False)
    assert (found.token_budget, found.offload) == (2400, "as needed")  # 4800 tokens, half a step's, take 78,000
    assert "did not fit at first: rows now have at most 2400 tokens" in caplog.text
    fixed = fitted(card, UNMEASURED, lambda: 0.96 * card.memory, np.full(100, 300), 14, budget_fixed=True)
    assert (fixed.token_budget, fixed.offload) == (8192, "always")  # 4200 tokens take 72,000, in host memory 46,800


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize(
    ("memory", "first", "alone"), [(1e7, 6000, True), (4e5, 6000, True), (3.4e5, 6000, False), (3e5, 2048, False)]
)
def test_where_memory_seems_plenty_the_longest_row_is_tried_first(
    memory: float, first: int, alone: bool, fixed: bool, monkeypatch: pytest.MonkeyPatch
):
    card, tokens = Card(memory), np.full(100, 300)
    measured = fitted(card, UNMEASURED, lambda: 0.96 * memory, tokens, 20, budget_fixed=fixed)
    tried: list[int] = []
    peak = card.peak
    monkeypatch.setattr(card, "peak", lambda row, execution: [tried.append(row), peak(row, execution)][1])
    estimate = Execution(8192, Room(0.8 * (memory - FIXED), 2.0, 2 * LAYER), offload="as needed")
    found = fitted(card, estimate, lambda: 0.96 * memory, tokens, 20, budget_fixed=fixed)
    assert found.token_budget == measured.token_budget and found.offload == measured.offload
    assert card.kept(6000, found) == card.kept(6000, measured)
    assert tried[0] == first and (len(tried) == 1) == alone
    if alone:
        assert found.room is not None and found.room.keeps_all(6000, LAYERS)
        assert found.room.total == 0.96 * memory - FIXED and found.room.base == 2.0
        smaller = found.smaller([6000], 300, LAYERS)
        assert smaller is not None and card.kept(6000, smaller[0]) == LAYERS - 1


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
    assert longest_rows(Room(total, 1.0, 2.0), layers=4, usual=8192, most=32768) == budget


@pytest.mark.parametrize("memory", [10_000_000.0, 250_000.0, 120_000.0, 80_000.0])
def test_what_a_kept_layer_takes_is_measured_where_a_row_of_the_usual_length_cannot_be_kept(memory: float):
    room = measured_room(UNMEASURED, Card(memory).peak, lambda: memory, layers=LAYERS, row=4096)
    assert room == Room(memory - FIXED, BASE, LAYER)


def test_nothing_is_kept_where_not_even_a_short_row_can_be(monkeypatch: pytest.MonkeyPatch):
    memory = FIXED + 4096 * BASE
    monkeypatch.setattr(fitting, "LEAST_PROBE", 2048)

    def room(memory: float) -> Room | None:
        return measured_room(UNMEASURED, Card(memory).peak, lambda: memory, layers=LAYERS, row=4096)

    assert room(memory) == Room(4096 * BASE, BASE, float("inf"))
    assert room(memory - 1) is None


@pytest.mark.parametrize("given", [None, NOTHING, EVERYTHING])
def test_rows_whose_treatment_is_given_count_as_they_are(given: Room | None):
    base = BASE + (LAYERS * LAYER if given is EVERYTHING else 0)
    room = measured_room(Execution(8192, given), Card(1e7).peak, lambda: 1e7, layers=LAYERS, row=4096)
    assert room == Room(1e7 - FIXED, base, 0.0)


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
    pairs = np.full(100, 900)
    pairs[:8] = 1800
    assert room.longest_kept(LAYERS) == 2944  # 2944 * (10 + 8 * 5) = 147k
    assert most_in_a_row(pairs, 8) == 14_400 < room.longest()
    execution = Execution(8192, room, offload="as needed")
    assert faster_rows(card, execution, pairs, 8) == Execution(budget, room, offload="as needed")


@pytest.mark.parametrize(
    ("row_seconds", "memory", "budget"),
    [
        (0.0, 1e6, 8192),  # the GPU takes 4 s a token, whatever the rows
        (30_000.0, 1e6, 28_800),  # the host takes as long as the GPU for rows of 7,200 tokens: all of a step in one row
        (30_000.0, 320_000.0, 14_400),  # 318,000 are more than may be used of that, 174,000 are not
        (30_000.0, 150_000.0, 9_600),
        (30_000.0, 126_000.0, 8192),
    ],
)
def test_rows_that_are_all_recomputed_are_as_long_as_memory_holds_where_the_host_is_slow(
    row_seconds: float, memory: float, budget: int
):
    card, execution = Card(memory, row_seconds), Execution.treating(8192, "recompute")
    pairs = np.full(100, 900)
    for fixed, expected in ((False, budget), (True, 8192)):
        found = fitted(card, execution, lambda: 0.96 * memory, pairs, 32, budget_fixed=fixed)
        assert found == Execution.treating(expected, "recompute")


def test_rows_that_do_not_fit_are_not_timed():
    card = Card(FIXED + 100_000)
    more_than_there_is = Execution(8192, Room(150_000, BASE, LAYER))
    assert faster_rows(card, more_than_there_is, np.full(100, 900), 8).token_budget == 8192
    assert faster_rows(card, Execution(8192, Room(95_000, BASE, LAYER)), np.full(100, 900), 8).token_budget == 1792


def test_rows_that_are_all_kept_stay_as_they_are():
    execution = Execution(7200, Room(1e9, BASE, LAYER))
    assert faster_rows(Card(1e9), execution, np.full(100, 900), 8) is execution


def test_a_model_that_keeps_no_layer_takes_the_usual_rows():
    room = Room(9000, 1.0, float("inf"))
    assert longest_rows(room, layers=4, usual=8192, most=32768) == 8192
    assert room.longest_kept(4) == 0


def test_rows_are_no_longer_than_the_longest_step():
    assert most_in_a_row(np.array([5, 90, 30, 70]), 2) == 160
    assert most_in_a_row(np.array([5, 90]), 8) == 95
    assert longest_rows(Room(1e9, 1.0, 2.0), layers=4, usual=8192, most=300) == 300


def test_rows_of_steps_that_are_not_kept_are_no_shorter_than_usual():
    assert longest_rows(Room(74_000, 1.0, 2.0), layers=4, usual=8192, most=19_398) == 8192
    assert longest_rows(Room(160_000, 1.0, 2.0), layers=4, usual=8192, most=19_398) == 9699


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


def test_rows_of_a_run_with_images_are_made_of_pairs_that_have_some():
    images = PairImages({"pixel_values": torch.zeros(1, 3, 2, 2)}, {}, b"")
    long, short = (TokenizedPair([7] * n + [8], [7] * n + [9], n, n, images=images) for n in (38, 8))
    found = made_up_row(100, 60, 50, [short, long])
    assert [pair.row_tokens for pair in found] == [40, 40, 10, 10]
    assert [pair.row_tokens for pair in made_up_row(9, 60, 50, [short, long])] == [9]
    assert all(pair.images is images for pair in found)
