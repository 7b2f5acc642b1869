"""How busy other processes kept the processor while something was measured; a quiet machine is close to 0."""

from __future__ import annotations

import os
import time


class Neighbours:
    """Counts processor time from its creation on, this process's and everybody's."""

    def __init__(self) -> None:
        self._begun, self._own, self._all = time.monotonic(), _own_seconds(), _all_seconds()

    def share(self) -> float | None:
        """Return the share of all cores that other processes used since then, from 0 to 1; None outside of Linux."""
        everybody = _all_seconds()
        if everybody is None or self._all is None:
            return None
        others = everybody - self._all - (_own_seconds() - self._own)
        return max(0.0, others / ((os.cpu_count() or 1) * (time.monotonic() - self._begun)))


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _all_seconds() -> float | None:
    """Processor seconds of all processes since the machine started: user, nice, system, irq, softirq."""
    try:
        with open("/proc/stat", encoding="ascii") as stream:
            ticks = [int(word) for word in stream.readline().split()[1:8]]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq = ticks
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
