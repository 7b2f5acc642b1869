"""Cases in a process of their own, with bounds on time and memory, and what came of each.

A case may end in two ways only: what was written is read, or it is refused with a message that a person can act on.
Everything else is a finding: a raw exception, a case that does not end, one that takes memory far beyond its file, one
that takes the process down, a message of more than a screen.

Time is processor time, of the process and those that it started: on a machine that does other things as well, a case
takes no more of it. One that waits without computing is ended by the clock.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

MEMORY_LIMIT = 6 * 2**30
"""Address space that a case may take beyond what the process had when it began."""
WAITING = 10
"""A case may take this many times its seconds by the clock."""
LONGEST_MESSAGE = 8000
"""Characters of a refusal: a screen of 100 columns by 50 lines, with room for long paths."""


@dataclass(frozen=True)
class Target:
    """What is damaged and read.

    Attributes:
        name: of the target, on the command line and in results.
        write: makes a damaged thing below an empty directory and returns its path.
        read: reads it as a run would; `RequestError` and what it returns are the only ways to end.
        seconds: of processor time that a case may take.
        memory: bytes that it may take beyond the size of its files.
        per_byte: bytes of memory that it may take for each byte of its files.
    """

    name: str
    write: Callable[[Random, Path], Path]
    read: Callable[[Path], object]
    seconds: float = 20.0
    memory: int = 400 * 2**20
    per_byte: int = 100


@dataclass(frozen=True)
class Outcome:
    """How a case ended: `kind` is read, refused, raw, endless, memory, died or wordy; `detail` says where, or what."""

    seed: int
    kind: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def is_finding(self) -> bool:
        return self.kind not in ("read", "refused")


def trials(target: Target, seeds: Iterable[int]) -> Iterator[Outcome]:
    """The outcome of each seed, in order. A process serves many cases and is replaced when one ends it."""
    worker: _Worker | None = None
    try:
        for seed in seeds:
            worker = worker or _Worker(target)
            outcome = worker.outcome(seed)
            if outcome is None:
                outcome, worker = worker.end(seed), None
            yield outcome
    finally:
        if worker is not None:
            worker.close()


class _Worker:
    def __init__(self, target: Target) -> None:
        context = multiprocessing.get_context("spawn")
        self._target = target
        self._pipe, other = context.Pipe()
        self._scratch = tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True)
        self._process = context.Process(target=_serve, args=(target.name, other, self._scratch.name), daemon=True)
        self._process.start()
        other.close()
        if not self._pipe.poll(180) or self._pipe.recv() != "ready":
            raise RuntimeError(f"no process for {target.name}")

    def outcome(self, seed: int) -> Outcome | None:
        """What came of a case; None where the process did not answer."""
        self._began, before = time.monotonic(), _processor_seconds(self._process.pid)
        self._pipe.send(seed)
        with contextlib.suppress(EOFError, ConnectionError):
            while not self._pipe.poll(1):
                if time.monotonic() - self._began > WAITING * self._target.seconds:
                    return None
                if _processor_seconds(self._process.pid) - before > self._target.seconds + 5:
                    return None
            return self._pipe.recv()  # type: ignore[no-any-return]
        return None

    def end(self, seed: int) -> Outcome:
        """Stop the process; whether it had ended by itself tells a case that killed it from one without an end."""
        self._process.join(5)
        status = self._process.exitcode
        self.close()
        took = round(time.monotonic() - getattr(self, "_began", time.monotonic()), 1)
        if status is None:
            return Outcome(seed, "endless", f"beyond {self._target.seconds:g} s", took)
        return Outcome(seed, "died", f"exit status {status}", took)

    def close(self) -> None:
        """End the process and remove what it wrote."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
        self._scratch.cleanup()


def _serve(name: str, pipe: Connection, scratch: str) -> None:
    from soak.targets import target_named

    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
        contextlib.suppress(EOFError),
    ):
        settle(Path(scratch))
        target = target_named(name)
        run_case(target, 0, Path(scratch) / "warm")  # imports what it needs
        limit = _status("VmSize") + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        pipe.send("ready")
        while True:
            seed = pipe.recv()
            pipe.send(run_case(target, seed, Path(scratch) / "case"))


def settle(scratch: Path) -> None:
    """Caches of this process alone, no hub, quiet libraries."""
    import logging
    import warnings

    os.environ.update(
        HF_HOME=str(scratch / "home"),
        HF_DATASETS_CACHE=str(scratch / "datasets"),
        WISHBONE_CACHE=str(scratch / "wishbone"),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        TRANSFORMERS_VERBOSITY="error",
        TOKENIZERS_PARALLELISM="false",
        OMP_NUM_THREADS="1",
    )
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def run_case(target: Target, seed: int, directory: Path) -> Outcome:
    """Write and read one case in this process, in a directory that is removed again."""
    from wishbone.errors import RequestError

    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    path = target.write(Random(f"{target.name} {seed}"), directory)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    _forget_peak()
    before, began = _status("VmRSS"), _processor_seconds(os.getpid())
    kind, detail = "read", ""
    try:
        target.read(path)
    except RequestError as error:
        text = str(error)
        kind, detail = "refused", text[:200]
        if len(text) > LONGEST_MESSAGE:
            kind, detail = "wordy", f"{len(text)} characters: {text[:80]!r}"
        elif "Traceback" in text or not all(map(str, error.problems)):
            kind, detail = "raw", "a refusal with a traceback or without a word"
    except BaseException as error:  # noqa: BLE001  whatever else comes is what is looked for
        kind, detail = "raw", f"{type(error).__module__}.{type(error).__name__} at {_where(error)}: {str(error)[:160]}"
    seconds, peak = _processor_seconds(os.getpid()) - began, _status("VmHWM") - before
    if kind in ("read", "refused") and seconds > target.seconds:
        kind, detail = "endless", f"{seconds:.0f} s of processor time"
    if kind in ("read", "refused") and peak > target.memory + target.per_byte * size:
        kind, detail = "memory", f"{peak / 2**20:.0f} MiB for a file of {size / 2**20:.2f} MiB; {detail[:80]}"
    shutil.rmtree(directory, ignore_errors=True)
    return Outcome(seed, kind, detail, round(seconds, 2))


def _where(error: BaseException) -> str:
    """The innermost line of Wishbone that the exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/wishbone/" in frame.filename] or list(frames)
    return f"{Path(own[-1].filename).parent.name}/{Path(own[-1].filename).name}:{own[-1].name}" if own else "?"


def _status(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _processor_seconds(process: int | None) -> float:
    """What a process and those children of it that have ended used of a processor, in seconds."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _forget_peak() -> None:
    """Let VmHWM start again."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
