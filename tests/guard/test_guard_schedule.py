from __future__ import annotations

import json
import random
from itertools import pairwise

from wishbone.guard.schedule import SHARE, Schedule


def run(max_steps: int, *, cost: float, step_seconds: float, suspicions: bool = False) -> tuple[Schedule, list[int]]:
    """Measure whenever it is due; return the schedule and the steps at which it was."""
    noise, schedule, measured = random.Random(1), Schedule(None), []
    schedule.plan(3, max_steps, cost=cost, step_seconds=step_seconds)
    for step in range(4, max_steps + 1):
        if suspicions:
            schedule.suspect(step)
        if schedule.due(step):
            measured.append(step)
            took = cost * noise.uniform(0.8, 1.1)
            schedule.spent += took
            schedule.plan(step, max_steps, cost=took, step_seconds=step_seconds)
    return schedule, measured


def test_half_of_three_percent_is_not_exceeded_whatever_a_measurement_costs() -> None:
    for cost in (0.01, 0.1, 1.0, 5.0, 50.0):
        for suspicions in (False, True):
            schedule, _ = run(400, cost=cost, step_seconds=1.0, suspicions=suspicions)
            assert schedule.spent < SHARE / 2 * 400


def test_measurements_lie_further_apart_where_they_cost_more() -> None:
    counts = [len(run(1000, cost=cost, step_seconds=1.0)[1]) for cost in (0.1, 1.0, 3.0, 20.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[2] > 0
    assert counts[-1] == 0


def test_they_are_spread_over_the_whole_run() -> None:
    _, measured = run(1000, cost=1.0, step_seconds=1.0)
    assert measured[-1] > 800
    assert max(later - earlier for earlier, later in pairwise(measured)) < 200


def test_a_suspicion_brings_the_next_one_forward_also_where_only_one_is_left() -> None:
    schedule = Schedule(None)
    schedule.plan(10, 100, cost=1.0, step_seconds=1.0)  # 1.35 s: one measurement, kept for a suspicion
    assert schedule.next is None
    schedule.suspect(11)
    assert schedule.next is not None
    assert 11 <= schedule.next < 100


def test_a_fixed_interval_asks_no_clock() -> None:
    schedule = Schedule(5)
    steps = []
    for step in range(1, 21):
        if schedule.due(step):
            steps.append(step)
            schedule.spent += 100.0
            schedule.plan(step, 20, cost=100.0, step_seconds=0.001)
    assert steps == [5, 10, 15, 20]


def test_going_on_from_a_saved_state() -> None:
    schedule, _ = run(100, cost=0.2, step_seconds=1.0)
    schedule.suspect(99)
    resumed = Schedule(None)
    resumed.restore(json.loads(json.dumps(schedule.state())), 100)
    assert resumed.state() == schedule.state()


def test_from_the_first_checkpoint_on_a_continued_run_measures_where_the_whole_one_does() -> None:
    """However fast the other machine is."""

    def steps_of(schedule: Schedule, first: int, cost: float) -> list[int]:
        measured = []
        for step in range(first, 401):
            if step == 150:
                schedule.suspect(step)
            if schedule.due(step):
                measured.append(step)
                schedule.plan(step, 400, cost=cost, step_seconds=1.0)
        return measured

    whole, continued = Schedule(None), Schedule(None)
    whole.plan(3, 400, cost=0.3, step_seconds=1.0)
    saved = whole.state()
    whole.keep_plan()
    continued.restore(saved, 400)
    found = steps_of(whole, 100, 0.3)
    assert len(found) > 5
    assert steps_of(continued, 100, 300.0) == found


def test_a_longer_run_is_measured_to_its_end() -> None:
    schedule, _ = run(400, cost=0.5, step_seconds=1.0)
    longer = Schedule(None)
    longer.restore(schedule.state(), 800)
    assert longer.next is not None and 400 <= longer.next < 800
