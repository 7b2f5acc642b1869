"""Which directory a run writes to: `output.dir`, or `runs/<name>-<date>-<time>`; never one that holds anything else.

The directory is created before anything is loaded and locked for as long as the run lives. The lock is the kernel's
(`flock` on the file `.lock`), so it ends with the process, however that ends; its text says which process it was.
What a run leaves that wrote nothing is removed again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from wishbone.config.document import show, show_path
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError
from wishbone.paths import user_path

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
ERROR_LOG = "error.log"
METRICS = "metrics.jsonl"
LOCK = ".lock"
_WRITTEN = (CONFIG_FILE, METRICS, "environment.json", "summary.json", "report.html")
_LONGEST_NAME = 80
_SHOWN = 5
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,18})")
_STAMP = "[0-9]" * 8 + "-" + "[0-9]" * 6

logger = logging.getLogger(__name__)


def choose_run_directory(config: RunConfig, *, name: str | None = None, resume: bool = False) -> Path:
    """The directory of a run, as an absolute path; it is not created.

    Args:
        config: `output.dir` names the directory; without it a name is generated.
        name: first part of a generated name; None: the model's.
        resume: look for the directory of an earlier run: `output.dir`, or the latest one with a generated name.

    Raises:
        RequestError: without `resume`, the directory already holds a run or other files; with `resume`, there is no run
            to continue.
    """
    if config.output.dir is not None:
        directory = user_path(config.output.dir).absolute()
        _check_content(directory, resume=resume)
        return directory
    runs = Path.cwd() / "runs"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name or Path(config.model.name).name)[:_LONGEST_NAME].strip(".-") or "run"
    if resume:
        earlier = sorted(path for path in runs.glob(f"{stem}-{_STAMP}*") if path.is_dir())
        if not earlier:
            others = sorted(runs.glob(f"*/{CONFIG_FILE}"), key=os.path.getmtime)
            continued = [
                f"; the latest other run there: `wishbone train {shlex.quote(str(one))} --resume`" for one in others
            ]
            raise RequestError(
                f"there is no run {show(stem)} in {show_path(runs)} to continue; start one without --resume, "
                f"or name its directory with output.dir{''.join(continued[-1:])}"
            )
        return earlier[-1]
    made = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    taken = {path.name for path in runs.glob(f"{made}*")}
    return runs / next(
        option for option in (made, *(f"{made}-{n}" for n in range(2, len(taken) + 3))) if option not in taken
    )


def removed_meanwhile(directory: Path) -> str | None:
    """What to say where a run's directory is no longer there; None where it is."""
    if directory.is_dir():
        return None
    return (
        f"{show_path(directory)} was removed or renamed while the run wrote into it; rename it back and continue with "
        "--resume, or start the run again"
    )


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written, as its name says.

    Raises:
        ValueError: the name is not that of a checkpoint.
    """
    named = _CHECKPOINT.fullmatch(checkpoint.name)
    if named is None:
        raise ValueError(f"{checkpoint.name} is not the name of a checkpoint")
    return int(named[1])


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a directory, sound or not, oldest first; none where there is no directory."""
    found = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


@contextmanager
def claimed_run_directory(config: RunConfig, *, name: str | None = None, resume: bool = False) -> Iterator[Path]:
    """Context in which the directory that `choose_run_directory` chooses is there and belongs to this run alone.

    Raises:
        RequestError: as `choose_run_directory`; another run is writing into the directory; it cannot be created.
    """
    while True:
        directory = choose_run_directory(config, name=name, resume=resume)
        try:
            made = _make(directory)
        except OSError as error:
            raise _unusable(directory, "created", error) from error
        if made or resume or config.output.dir is not None:
            break
        # Another run took the generated name in this moment; the next one is chosen.
    try:
        with _locked(directory):
            _check_content(directory, resume=resume)
            _clear(directory)
            try:
                yield directory
            finally:
                _clear(directory)
    finally:
        for path in made:
            with suppress(OSError):  # not empty: the run wrote something
                path.rmdir()


def _make(directory: Path) -> list[Path]:
    """Create a directory and return what was created, the innermost first; nothing where it is there already."""
    missing = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
    for path in reversed(missing[1:]):
        path.mkdir(exist_ok=True)
    try:
        directory.mkdir()
    except FileExistsError:
        if not directory.is_dir():
            raise
        return []
    return missing


def _clear(directory: Path) -> None:
    """Remove what a run left that ended before it wrote its configuration; not the traceback of its failure."""
    if _holds_run(directory):
        return
    with suppress(OSError):
        (directory / METRICS).unlink()
    with suppress(OSError):
        (directory / CHECKPOINTS).rmdir()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a run directory; the lock file is gone when the block has ended."""
    path = directory / LOCK
    descriptor = _lock(path)
    _held.add(descriptor)
    try:
        with suppress(OSError):  # a full disk: the lock holds without a text
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the lock ends: whoever comes next creates another file
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Return a descriptor of the locked file."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unusable(path.parent, "written", error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise RequestError(
                f"output.dir: a run that has not ended writes into {show_path(path.parent)}"
                f"{f' ({holder})' if holder else ''}; wait for its end or stop it, or name another directory"
            ) from None
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): start no other run in this directory meanwhile", path, error.strerror
            )
            return descriptor
        try:
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the run before removed the file between the two calls


_held: set[int] = set()


def _close_in_child() -> None:
    """A forked worker that outlives its run must not hold the lock."""
    for descriptor in _held:
        os.close(descriptor)


os.register_at_fork(after_in_child=_close_in_child)


def _unusable(directory: Path, what: str, error: OSError) -> RequestError:
    reason = error.strerror or type(error).__name__
    return RequestError(f"output.dir: {show_path(directory)} cannot be {what} ({reason}); name another directory")


def _holds_run(directory: Path) -> bool:
    return (directory / CONFIG_FILE).exists() or any((directory / CHECKPOINTS).glob("*"))


def _misplaced(directory: Path) -> Iterator[str]:
    """A sentence for each thing in a run directory that is in the way of what the run writes."""
    for name in _WRITTEN:
        if (directory / name).is_dir():
            yield f"output.dir: {show_path(directory / name)} is a directory, and the run writes a file there; move it"
    place = directory / CHECKPOINTS
    if os.path.lexists(place) and not place.is_dir():
        yield f"output.dir: {show_path(place)} is not a directory, and the run keeps its checkpoints there; move it"


def _check_content(directory: Path, *, resume: bool) -> None:
    """Refuse a directory that holds no run to continue, or anything where a new run is to begin."""
    began = (directory / LOCK).exists()
    if resume:
        if not _holds_run(directory) and not began:
            raise RequestError(
                f"output.dir: {show_path(directory)} holds no run to continue; start one without --resume, "
                "or name the directory of a run"
            )
        if misplaced := [*_misplaced(directory)]:
            raise RequestError(misplaced)
        return
    if _holds_run(directory):
        raise RequestError(
            f"output.dir: {show_path(directory)} already holds a run; continue it with --resume, "
            "name another directory, or delete it"
        )
    left = {ERROR_LOG} | ({LOCK, METRICS, CHECKPOINTS} if began else set())
    try:
        there = sorted(entry.name for entry in directory.iterdir() if entry.name not in left)
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        file = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
        raise RequestError(
            f"output.dir: {show_path(directory)} cannot be created, because {file.name} is not a directory; name "
            "another directory"
        ) from error
    except OSError as error:
        raise _unusable(directory, "read", error) from error
    if there:
        names = ", ".join(show(name) for name in there[:_SHOWN])
        more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
        raise RequestError(
            f"output.dir: {show_path(directory)} is not empty and holds no run (it has {names}{more}); a run needs a "
            "directory of its own: name a new one, such as one inside it"
        )
