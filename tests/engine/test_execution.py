"""The one ladder down which memory is saved: its order, that each step takes less, and that it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from wishbone.engine.execution import (
    EVERYTHING,
    NOTHING,
    RECOMPUTED_HEAD_CHUNK,
    SMALL_HEAD_CHUNK,
    SMALL_TILE,
    UNLIMITED,
    Execution,
    Room,
)

LAYERS = 8


class Recorded:
    """Graphs that do nothing."""

    def __init__(self) -> None:
        self.lengths = [256, 512]

    def padded(self, tokens: int) -> int:
        return tokens

    def replay(self, batch: Any) -> None:
        return None

    def release(self) -> None:
        pass


def ladder(execution: Execution, rows: list[int], least: int) -> list[tuple[Execution, str]]:
    """All executions from this one down; rows are cut as the budget says."""
    found = []
    while (less := execution.smaller([min(row, execution.token_budget) for row in rows], least, LAYERS)) is not None:
        found.append(less)
        execution = less[0]
        assert len(found) < 200
    return found


def test_the_order_is_graphs_layers_rows_host_memory_and_all_layers_of_short_rows():
    start = Execution(4000, Room(4000.0 * 11, 10.0, 5.0), offload="as needed", graphs=Recorded())
    down = ladder(start, [4000, 1000], least=4000)
    kinds = [given_up for _, given_up in down]
    assert kinds == [
        "CUDA graphs are dropped",
        "the inputs of layers now wait in host memory",
        "all layers of all rows are now recomputed",
    ]  # a row of 4000 tokens keeps none of its layers, one of 1000 all of them
    assert down[0][0] == replace(start, graphs=None)
    assert down[1][0] == replace(down[0][0], offload="always", head_chunk=SMALL_HEAD_CHUNK, tile_tokens=SMALL_TILE)
    assert down[2][0] == replace(down[1][0], room=NOTHING)


def test_rows_of_half_the_length_keep_more_layers_in_the_same_room():
    start = Execution(4000, Room(4000.0 * 13, 10.0, 5.0), offload="as needed")
    down = [execution for execution, _ in ladder(start, [4000], least=1000)]
    budgets = [execution.token_budget for execution in down]
    assert sorted(set(budgets), reverse=True) == [2000, 1000]
    halved = down[budgets.index(2000)]
    assert halved.room == start.room and halved.room.kept(2000, LAYERS) == 3
    rooms = [execution.room.total for execution in down if execution.room is not None]
    assert rooms == sorted(rooms, reverse=True)


@pytest.mark.parametrize(
    "room", [Room(1e6, 10.0, 5.0), Room(1e6, 0.0, 5.0), Room(1e6, 10.0, 0.0), Room(1e6, 10.0, float("inf"))]
)
@pytest.mark.parametrize("least", [37, 900, 5000])
def test_every_step_takes_less_and_the_last_takes_least(room: Room, least: int):
    start = Execution(5000, room, offload="as needed")
    down = [start, *(execution for execution, _ in ladder(start, [5000], least))]
    for before, after in pairwise(down):
        row, shorter = min(5000, before.token_budget), min(5000, after.token_budget)
        fewer = after.room.kept(row, LAYERS) < before.room.kept(row, LAYERS)
        assert sum([fewer, shorter < row, after.offload != before.offload]) == 1
        assert after.room.total <= before.room.total and shorter <= row
    assert down[-1].token_budget == least
    assert down[-1].offload == "always"
    assert down[-1].room.kept(least, LAYERS) == 0


@pytest.mark.parametrize("treatment", ["keep", "recompute", "offload"])
def test_a_treatment_that_the_user_chose_is_not_given_up(treatment: Any):
    start = Execution.treating(4000, treatment)
    down = [execution for execution, _ in ladder(start, [4000], least=900)]
    if treatment == "offload":
        assert down.pop() == down[-1].in_host_memory(), "pieces, which the user did not ask for, come last"
    assert [execution.token_budget for execution in down] == [2000, 1000, 900]
    assert all(replace(execution, token_budget=4000) == start for execution in down)
    assert not start.measures_room


def test_layers_that_the_owner_treats_are_left_alone():
    down = ladder(Execution(4000), [4000], least=2000)
    assert [execution for execution, _ in down] == [Execution(2000)]


def test_given_treatments():
    assert Execution.treating(7, "keep") == Execution(7, EVERYTHING)
    assert Execution.treating(7, "recompute") == Execution(7, NOTHING, head_chunk=RECOMPUTED_HEAD_CHUNK)
    assert Execution.treating(7, "offload") == Execution(7, NOTHING, "always", RECOMPUTED_HEAD_CHUNK)
    assert UNLIMITED.room is None and UNLIMITED.graphs is None


def test_what_a_room_holds():
    room = Room(total=1000.0, base=1.0, layer=3.0)
    assert [room.kept(tokens, 4) for tokens in (50, 76, 77, 143, 250, 1000, 1001)] == [4, 4, 3, 1, 1, 0, 0]
    assert room.holds(1000) and not room.holds(1001)
    assert room.keeps_all(76, 4) and not room.keeps_all(77, 4)
    assert (room.longest(), room.longest_kept(1)) == (896, 128)  # 1000 and 250 in whole blocks
    assert EVERYTHING.kept(10**9, 4) == 4 and EVERYTHING.keeps_all(10**9, 4)
    assert NOTHING.kept(1, 4) == 0 and NOTHING.holds(10**9)
    assert Room(1000.0, 1.0, float("inf")).kept(10, 4) == 0


@pytest.mark.parametrize("base", [0.0, 1.0, 40.0])
def test_a_smaller_room_keeps_at_least_one_layer_fewer(base: float):
    room, kept = Room(total=1e6, base=base, layer=3.0), [32]
    while kept[-1] > 0:
        room = room.smaller(1000, 32)
        kept.append(room.kept(1000, 32))
    assert kept == sorted(set(kept), reverse=True)
    assert kept[1] == 31, "room for more layers than there are is no reason to stay at all of them"


def test_a_summary_is_json():
    execution = Execution(2000, Room(30_000.0, 10.0, 1.0), "as needed", graphs=Recorded())
    assert json.loads(json.dumps(execution.summary(LAYERS))) == {
        "token_budget": 2000,
        "layers": LAYERS,
        "kept_layers": 5,
        "offload": "as needed",
        "head_chunk_bytes": None,
        "tile_tokens": None,
        "graph_lengths": [256, 512],
    }
    assert json.loads(json.dumps(Execution.treating(2, "keep").summary(LAYERS)))["kept_layers"] == LAYERS
    assert Execution(2).summary(LAYERS)["kept_layers"] is None
