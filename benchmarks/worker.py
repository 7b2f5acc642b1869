"""One measurement in a process of its own: reads a request, imports, waits for its turn, measures, writes.

    python -m benchmarks.worker REQUEST.json PROGRESS.jsonl

Every line of the progress file is an object. `phase` says what begins now, so that a process that had to be ended can
be told to have ended there; `partial` is a result so far, `result` the result. The process begins to measure when a
line arrives on its standard input, and ends when its parent is gone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.loading import import_libraries, versions
from benchmarks.systems import parse_system


class Progress:
    """Tells the parent what is going on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = time.perf_counter()

    def write(self, **facts: Any) -> None:
        """Add a line."""
        facts["at"] = round(time.perf_counter() - self._begun, 3)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(facts) + "\n")

    def phase(self, name: str) -> None:
        """Say what begins now."""
        self.write(phase=name)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    progress = Progress(Path(sys.argv[2]))
    system = parse_system(request["system"]) if request["system"] else None
    progress.phase("importing libraries")
    import_libraries(system)
    measure = importlib.import_module(f"benchmarks.{request['kind']}").measure
    progress.phase("waiting")
    if not sys.stdin.readline():
        return
    result = measure(request, progress)
    facts = {"versions": versions(system), "options": system.chosen() if system else {}}
    progress.write(result=facts | result)
    sys.stdout.flush()
    os._exit(0)  # threads and caches of the libraries have nothing left to do


if __name__ == "__main__":
    main()
