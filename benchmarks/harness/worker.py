"""The child process of one measurement: reads a request, imports, waits for its turn, measures, writes.

    python -m benchmarks.harness.worker REQUEST.json PROGRESS.jsonl

Every line of the progress file is a JSON object: `phase` names what begins now, so that a killed process can be said to
have ended there; `partial` holds a result so far, `result` the final one. `at` is when, in seconds. The process starts
to measure when a line arrives on its standard input, and ends when its parent is gone. On SIGUSR1 it writes where each
of its threads is into its log.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.loading import import_libraries, versions
from benchmarks.harness.systems import System, parse_system

if TYPE_CHECKING:
    from wishbone.phases import Phase

SECONDS = 0.5
"""Least time between two lines about one phase."""


class Progress:
    """The file in which the parent reads how far the measurement is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = time.perf_counter()

    def write(self, **facts: Any) -> None:
        """Add a line."""
        facts["at"] = self.seconds()
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(facts) + "\n")

    def seconds(self) -> float:
        """Return how long the process has been here."""
        return round(time.perf_counter() - self._begun, 3)

    def phase(self, name: str) -> None:
        """Say what begins now."""
        self.write(phase=name)


class Phases:
    """Writes the phases of Wishbone's own work, and how far each is, at most once in `SECONDS`."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._written = progress, -SECONDS

    def began(self, phase: Phase) -> None:
        """Write its name."""
        self._progress.phase(phase.name)

    def moved(self, phase: Phase) -> None:
        """Write how much of it is done."""
        if (seconds := self._progress.seconds()) >= self._written + SECONDS:
            self._written = seconds
            self._progress.phase(f"{phase.name}, {phase.done} of {phase.total or 'some'}")

    def ended(self, phase: Phase) -> None:
        """Write that it is over."""
        self._progress.phase(f"after {phase.name}")


def noting_phases(system: System | None, progress: Progress) -> AbstractContextManager[None]:
    """Context in which Wishbone's phases are written, and all that it logs goes to the process's log.

    Its import changes a process, so other systems do without, and code of a time that had no phases, too.
    """
    if system is None or system.family != "wishbone" or importlib.util.find_spec("wishbone.phases") is None:
        return nullcontext()
    from wishbone.phases import listening

    said = logging.getLogger("wishbone")
    said.setLevel(logging.INFO)
    said.addHandler(logging.StreamHandler())
    return listening(Phases(progress))


def main() -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    progress = Progress(Path(sys.argv[2]))
    system = parse_system(request["system"]) if request["system"] else None
    progress.phase("importing libraries")
    import_libraries(system)
    measure = importlib.import_module(f"benchmarks.commands.{request['kind']}").measure
    imported = progress.seconds()
    progress.phase("waiting")
    if not sys.stdin.readline():
        return
    with noting_phases(system, progress):
        result = measure(request, progress)
    facts = {"versions": versions(system), "options": system.chosen() if system else {}, "import_seconds": imported}
    progress.write(result=facts | result)
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads of the libraries


if __name__ == "__main__":
    main()
