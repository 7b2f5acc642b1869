"""A host that is made slow on purpose: processes share their cores with others that spin.

Machines with the same GPU differ up to two times in how fast Python runs. What a step takes where the GPU waits for the
host can so be measured on any of them. It is not the same as a slower processor: a core serves both processes in slices
of milliseconds.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.harness.results import Row

CORES = 8
"""Cores that are shared, at most; the processes that are measured get no others."""

WEIGHT_OF_A_STEP = 1.25
"""By how much one step of niceness changes a process's weight in Linux's scheduler (`sched_prio_to_weight`)."""

SPIN = """
import os, sys
core, nice, parent = map(int, sys.argv[1:])
os.sched_setaffinity(0, {core})
os.nice(nice)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def slow_host(share: float) -> Iterator[Row]:
    """Leave this process, and those that it starts, about a share of each of a few cores; Linux only.

    Args:
        share: from 0.5, where the spinning processes have the same priority, to 0.95.

    Yields:
        What was done, and how long a Python loop takes before and meanwhile, in seconds.
    """
    nice = round(math.log(share / (1 - share), WEIGHT_OF_A_STEP))
    before = os.sched_getaffinity(0)
    cores = sorted(before)[:CORES]
    quiet = loop_seconds()
    os.sched_setaffinity(0, cores)
    spinning = [
        subprocess.Popen([sys.executable, "-c", SPIN, *map(str, (core, nice, os.getpid()))], start_new_session=True)
        for core in cores
    ]
    try:
        time.sleep(0.5)  # until they spin
        slowed = loop_seconds()
        yield {
            "made_slow": f"on purpose: {len(cores)} cores, each shared with a spinning process of niceness {nice}",
            "python_loop_seconds": {"quiet": round(quiet, 3), "made slow": round(slowed, 3)},
            "speed": round(quiet / slowed, 2),
        }
    finally:
        for process in spinning:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, before)


def loop_seconds() -> float:
    """Return how long a loop of ten million additions takes, in seconds."""
    begun = time.perf_counter()
    total = 0
    for number in range(10_000_000):
        total += number
    return time.perf_counter() - begun
