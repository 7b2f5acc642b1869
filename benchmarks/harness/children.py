"""A measurement in a process of its own; one that goes wrong becomes a row with the reason.

A process that fails, is killed or takes too long does not stop the benchmark. The reason is taken from how the process
ended, what it was doing, and the last line of its log.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.harness.results import ROOT, Row

LONGEST_REASON = 300
SECONDS_TO_SAY = 1.0
"""What a process has to write where its threads are, before it is killed."""
FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$')
MOST_FRAMES = 25
OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|out of memory|can't allocate memory|MemoryError", re.IGNORECASE)
RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning)\b")


class Child:
    """A process that measures what `request` asks for, once it is told to go.

    Args:
        request: what `worker.py` reads.
        name: name of its folder and log.
        folder: directory for request, progress, log and scratch files.
        python: interpreter that has the system's libraries.
        environment: variables in addition to those of this process.
        source: directory of the `wishbone` package that it imports.
    """

    def __init__(
        self,
        request: Mapping[str, Any],
        name: str,
        folder: Path,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        source: Path = ROOT / "src",
    ) -> None:
        self.request = request
        scratch = folder / name
        scratch.mkdir(parents=True)
        self.log = folder / f"{name}.log"
        self._progress = scratch / "progress.jsonl"
        asked = scratch / "request.json"
        asked.write_text(json.dumps({**request, "scratch": str(scratch)}), encoding="utf-8")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.harness.worker", str(asked), str(self._progress)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env=_environment(scratch, source, environment or {}),
                start_new_session=True,
            )

    def go(self) -> None:
        """Tell it to start measuring."""
        self.tell()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def tell(self) -> None:
        """Send it a line: what it waits for before it starts, and before each further turn."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it failed while it waited; `outcome` says how
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def turns(self) -> int:
        """Return how many turns it has ended."""
        return sum("turn" in line for line in self._lines())

    def outcome(self, limit_seconds: float) -> Row:
        """Wait for the result; kill the process if it takes longer than `limit_seconds` from now on."""
        begun = time.monotonic()
        late = False
        try:
            self._process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            late = True
            self._ask_where()
        finally:
            self.end()
        lines = self._lines()
        row: Row = {"seconds": round(time.monotonic() - begun, 1), "phases": _times(lines)}
        results: list[Row] = [line["result"] for line in lines if "result" in line]
        if results:
            return row | {"status": "ok"} | results[-1]
        phase = next((line["phase"] for line in reversed(lines) if "phase" in line), "starting")
        partial: Row = next((line["partial"] for line in reversed(lines) if "partial" in line), {})
        reason = f"no result within {limit_seconds:.0f} s" if late else self._reason()
        row |= partial | {"status": "failed", "reason": reason, "phase": phase}
        return row | ({"was_at": self._stack()} if late else {})

    def end(self) -> None:
        """Kill the process and those that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _lines(self) -> list[Row]:
        if not self._progress.exists():
            return []
        return [json.loads(line) for line in self._progress.read_text(encoding="utf-8").splitlines() if line]

    def _ask_where(self) -> None:
        """Let a process that is late write into its log where its threads are, once it knows the signal."""
        if self._progress.exists():
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(SECONDS_TO_SAY)

    def _stack(self) -> list[str]:
        """Return where the main thread was, innermost first: the last of the threads in the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        threads = [number for number, line in enumerate(lines) if line.endswith("(most recent call first):")]
        frames = map(FRAME.match, lines[threads[-1] + 1 :] if threads else [])
        found = [f"{'/'.join(Path(one[1]).parts[-2:])}:{one[2]} {one[3]}" for one in frames if one]
        return found[:MOST_FRAMES]

    def _reason(self) -> str:
        """Return how it ended, from its exit status and its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        raised = [line for line in lines[-60:] if RAISED.match(line)]
        said = (raised or lines or ["nothing in its log"])[-1][:LONGEST_REASON]
        if OUT_OF_MEMORY.search(said):
            return f"out of memory: {said}"
        status = self._process.returncode
        if status < 0:
            return f"ended by {signal.Signals(-status).name}: {said}"
        return said


@contextmanager
def child(*arguments: Any, **options: Any) -> Iterator[Child]:
    """Start a `Child` and kill it at the end, whatever happens in between."""
    process = Child(*arguments, **options)
    try:
        yield process
    finally:
        process.end()


def _times(lines: list[Row]) -> dict[str, float]:
    """Return when each phase began, in seconds since the process did."""
    found: dict[str, float] = {}
    for line in lines:
        if "phase" in line:
            found.setdefault(line["phase"], line["at"])
    return found


def _environment(scratch: Path, source: Path, own: Mapping[str, str]) -> dict[str, str]:
    places = [str(ROOT), str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {name: value for name, value in os.environ.items() if name != "WISHBONE_REFERENCE_STORE"}
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(places),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
        "WISHBONE_CACHE": str(scratch / "cache"),  # a store that nobody asked for by name: Wishbone decides on it
        **own,
    }
