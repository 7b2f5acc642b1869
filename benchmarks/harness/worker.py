"""The child process of one measurement: reads a request, imports, waits for its turn, measures, writes.

    python -m benchmarks.harness.worker REQUEST.json PROGRESS.jsonl

Every line of the progress file is a JSON object: `phase` names what begins now, so that a killed process can be said to
have ended there; `partial` holds a result so far, `result` the final one. The process starts to measure when a line
arrives on its standard input, and ends when its parent is gone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.loading import import_libraries, versions
from benchmarks.harness.systems import parse_system


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


def main() -> None:
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
    result = measure(request, progress)
    facts = {"versions": versions(system), "options": system.chosen() if system else {}, "import_seconds": imported}
    progress.write(result=facts | result)
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads of the libraries


if __name__ == "__main__":
    main()
