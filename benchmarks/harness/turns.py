"""Trainings that take turns on one device: each runs a few steps while the others wait.

Turns are seconds long, so whatever changes on a machine within minutes changes for all of them alike. A training's
first turn includes its model's way into memory and its first steps. `turn_callback.py` is the trainings' side.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from benchmarks.harness.children import Child
from benchmarks.harness.results import Row

GLANCE_SECONDS = 0.02
"""How often the parent looks whether a turn has ended."""


def take_turns(children: Mapping[str, Child], limit_seconds: float) -> dict[str, Row]:
    """Let processes run in turn until all have ended; return their results by name.

    Args:
        children: in the order of their turns.
        limit_seconds: time for all of them; those that need more are killed.
    """
    end = time.monotonic() + limit_seconds
    waiting = dict(children)
    while waiting and time.monotonic() < end:
        for name, process in list(waiting.items()):
            turns = process.turns()
            process.tell()
            while process.running and process.turns() == turns and time.monotonic() < end:
                time.sleep(GLANCE_SECONDS)
            if not process.running:
                del waiting[name]
    return {name: process.outcome(max(0.0, end - time.monotonic())) for name, process in children.items()}
