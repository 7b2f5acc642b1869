"""Runs a list of measurements, each in a process of its own, and keeps their results.

The file of results is written after every row, so an interrupted call loses nothing. With `--ahead` the process of the
next measurement starts while the present one loads its model: it imports its libraries and then waits, so that a GPU
does not wait for Python. With `--at-once` several measure at the same time, where speed is not what is measured. With
`--minutes` no measurement starts that would not end in time; the next call continues
from there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness.children import Child, child
from benchmarks.harness.results import ROOT, Results, Row, line_of, name_of
from benchmarks.harness.slow_host import slow_host
from benchmarks.harness.systems import parse_system
from benchmarks.harness.turns import take_turns

OF_MEMORY = ("out of memory", "ended by")
"""Beginnings of the reasons after which a search goes on in a new process."""


@dataclass(frozen=True)
class Job:
    """One row to be measured.

    Attributes:
        kind: the module of `commands/` whose `measure` runs.
        system: as `parse_system` reads it; empty where no system is measured.
        size: shape of the random model, or None where `settings` names a model.
        case: tells rows of one kind, size and system apart.
        settings: whatever else `measure` reads from its request.
        limit_seconds: time after which it is killed.
        expected_seconds: how long it takes; it does not start with less time left.
        fresh_caches: give compilers empty caches of their own.
        caches: name of compiler caches that all jobs of a call with this name share; the first one finds them empty.
    """

    kind: str
    system: str
    size: str | None
    case: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    limit_seconds: float = 300
    expected_seconds: float = 60
    fresh_caches: bool = False
    caches: str = ""

    @property
    def key(self) -> Row:
        """What identifies its row."""
        return {"kind": self.kind, "size": self.size, "system": self.system, "case": self.case}


def one_or_more(text: str) -> int:
    """Read an option that is a whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _share(text: str) -> float:
    if not 0.5 <= (number := float(text)) <= 0.95:
        raise argparse.ArgumentTypeError(f"{number} is not between 0.5 and 0.95")
    return number


def add_step_options(parser: argparse.ArgumentParser, warm_up: int, timed: int) -> None:
    """Add the options of every benchmark that times training steps."""
    parser.add_argument("--warm-up", type=one_or_more, default=warm_up, help="steps that are not timed, at least 1")
    parser.add_argument("--timed", type=one_or_more, default=timed, help="steps that are timed")


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Add the option of benchmarks whose steps `timed_training` can watch."""
    parser.add_argument(
        "--watch", action="store_true", help="note each step's rows, host time, memory, allocator retries and clocks"
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every benchmark that runs jobs."""
    parser.add_argument("--out", type=Path, help="file of results; an existing one is continued")
    parser.add_argument("--again", action="store_true", help="measure again what the file of results already has")
    parser.add_argument("--model-dir", type=Path, help="where random models are kept for the next call")
    parser.add_argument("--logs", type=Path, help="keep the processes' logs in this directory")
    parser.add_argument("--ahead", action="store_true", help="start the next process while the present one loads")
    parser.add_argument("--minutes", type=float, help="start nothing that would not end within this time")
    parser.add_argument("--fresh-caches", action="store_true", help="empty compiler caches for every process")
    parser.add_argument(
        "--slow-host",
        type=_share,
        metavar="SHARE",
        help="leave this share of its cores to what is measured, from 0.5 to 0.95: other processes spin on them",
    )
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="FAMILY=PATH",
        help="interpreter that has the libraries of a family (trl, unsloth, wishbone), if not this one",
    )


def run_jobs(
    jobs: Sequence[Job], options: argparse.Namespace, console: Console | None = None, at_once: int = 1
) -> Results:
    """Run the jobs that are not in the file of results yet, so many at a time; return all its rows."""
    console = console or Console(stderr=True)
    with begun_call(options, console) as (results, line):
        pending = [job for job in jobs if options.again or not results.has(job.key)]
        one_by_one = _one_by_one(line, pending, options.ahead)
        for job, row in one_by_one if at_once == 1 else _together(line, pending, at_once):
            if row is None:
                console.print(f"{name_of(job.key)} was cut short: the time of this call is over")
                continue
            pending = [other for other in pending if other is not job]
            results.add(job.key | row)
            console.print(line_of(results.rows[-1]), soft_wrap=True)
            if options.out:
                results.write(options.out)
    if pending:
        console.print(f"{len(pending)} rows are left for another call, the first is {name_of(pending[0].key)}")
    return results


@contextmanager
def begun_call(options: argparse.Namespace, console: Console) -> Iterator[tuple[Results, Line]]:
    """Yield the rows so far, in a new call, and what starts its processes; with --slow-host, on a slow host."""
    results = Results.read(options.out) if options.out and options.out.exists() else Results()
    results.begin_call(options.commit)
    with ExitStack() as stack:
        if options.slow_host:
            results.calls[-1] |= stack.enter_context(slow_host(options.slow_host))
            console.print(f"made slow on purpose: Python runs at {results.calls[-1]['speed']} of its speed")
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wishbone-benchmarks-"))
        yield results, Line(Path(folder), options, stack, console)


def _one_by_one(line: Line, pending: Sequence[Job], ahead: bool) -> Iterator[tuple[Job, Row | None]]:
    """Run jobs while there is time for one, the first that fits first."""
    left = list(pending)
    while (job := _first_that_fits(left, line.seconds_left())) is not None:
        left.remove(job)
        following = _first_that_fits(left, line.seconds_left() - job.expected_seconds)
        yield job, line.run(job, following if ahead else None)


def _together(line: Line, pending: Sequence[Job], at_once: int) -> Iterator[tuple[Job, Row | None]]:
    """Run jobs at the same time; yield them as they end. One that needs more time than is left does not start."""
    pool = ThreadPoolExecutor(at_once)

    def run(job: Job) -> tuple[Job, Row | None] | None:
        return (job, line.run(job, None)) if job.expected_seconds <= line.seconds_left() else None

    try:
        for done in as_completed([pool.submit(run, job) for job in pending]):
            if (measured := done.result()) is not None:
                yield measured
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _first_that_fits(pending: Sequence[Job], seconds: float) -> Job | None:
    return next((job for job in pending if job.expected_seconds <= seconds), None)


class Line:
    """Processes that measure, and at most one that waits."""

    def __init__(self, folder: Path, options: argparse.Namespace, stack: ExitStack, console: Console) -> None:
        self._folder, self._options, self._stack, self._console = folder, options, stack, console
        self._pythons = dict(entry.split("=", 1) for entry in options.python)
        self._end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
        self._waiting: tuple[Job, Child] | None = None
        self._count = count(1)

    def seconds_left(self) -> float:
        """Return how much time this call has left."""
        return self._end - time.monotonic()

    def run(self, job: Job, following: Job | None) -> Row | None:
        """Measure a job and return its row; None if it was the call whose time ran out."""
        if not self.write_model(job):
            return {"status": "failed", "reason": "its random model could not be written", "phase": "writing the model"}
        process = self._process(job)
        if following:
            self._waiting = (following, self.start(following))
        begun = time.monotonic()
        found: Row = {}
        while True:
            process.go()
            limit = job.limit_seconds - (time.monotonic() - begun)
            row = process.outcome(min(limit, max(self.seconds_left(), 1)))
            self._keep_log(process)
            if row["status"] == "failed" and self.seconds_left() <= 1:
                return None
            again = row.pop("again", None)
            if not again or not (row["status"] == "ok" or row["reason"].startswith(OF_MEMORY)):
                break
            found = again.get("found", {})
            process = self.start(job, again)
        if row["status"] == "failed" and found:
            row = {"status": "ok", **found, "stopped_by": row["reason"]}
        row["seconds"] = round(time.monotonic() - begun, 1)
        return row | ({"fresh_caches": True} if self._fresh(job) else {})

    def in_turns(self, processes: Mapping[str, Child], limit_seconds: float) -> dict[str, Row]:
        """Let processes that `start` returned measure in turns; return their results by name."""
        found = take_turns(processes, min(limit_seconds, max(self.seconds_left(), 1)))
        for process in processes.values():
            self._keep_log(process)
        return found

    def _process(self, job: Job) -> Child:
        expected, process = self._waiting or (None, None)
        self._waiting = None
        if process and expected is job:
            return process
        if process:
            process.end()
        return self.start(job)

    def start(self, job: Job, changes: Row | None = None, **options: Any) -> Child:
        """Start the process of a job, its request changed by `changes`; it waits to be told to go.

        Args:
            options: further arguments of `Child`.
        """
        request = {**job.key, **job.settings, "directory": str(self._directory(job) or "") or None, **(changes or {})}
        if "model" in job.settings:
            request["directory"] = job.settings["model"]
        name = _file_name(f"{next(self._count):02d}-{name_of(job.key)}")
        own = job.caches or self._fresh(job)
        caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"} if own else {}
        place = self._folder / (_file_name(f"caches {job.caches}") if job.caches else name)
        environment = {key: str(place / folder) for key, folder in caches.items()}
        python = sys.executable
        if job.system:
            system = parse_system(job.system)
            environment |= dict(system.environment)
            python = self._pythons.get(system.family, python)
        return self._stack.enter_context(child(request, name, self._folder, python, environment, **options))

    def _fresh(self, job: Job) -> bool:
        return bool(job.fresh_caches or self._options.fresh_caches)

    def _directory(self, job: Job) -> Path | None:
        """Return the directory of a job's random model, or None if its system makes the model on the device."""
        if job.size is None or not parse_system(job.system).needs_directory:
            return None
        folder: Path = self._options.model_dir or Path(tempfile.gettempdir()) / "wishbone-benchmarks"
        return folder.resolve() / job.size

    def write_model(self, job: Job) -> bool:
        """Write the random model of a job that reads one, where it is not there yet; return whether it is there."""
        directory = self._directory(job)
        if directory is None or directory.exists():
            return True
        begun = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.harness.random_model", str(job.size), str(directory)]
        written = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
        self._console.print(f"wrote a random model of size {job.size} in {time.monotonic() - begun:.0f} s")
        return written

    def _keep_log(self, process: Child) -> None:
        if self._options.logs:
            self._options.logs.mkdir(parents=True, exist_ok=True)
            (self._options.logs / process.log.name).write_bytes(process.log.read_bytes())


def _file_name(text: str) -> str:
    return text.translate(str.maketrans(" :/=,", "-----"))
