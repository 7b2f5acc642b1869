"""How a run ends: its result there whole or not at all, and why there is none where it ended early."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from wishbone.errors import RunError, one_line
from wishbone.paths import room_at, writable_again
from wishbone.run.run_files import write_json


class ResultNotWritten(RunError):
    """What was learned could not be written; the last checkpoint holds it."""

    resumable = True


@contextmanager
def early_end_noted(summary: dict[str, Any], file: Path | None, steps: Callable[[], int]) -> Iterator[None]:
    """Context after which the summary of a run says so where it failed or was stopped.

    Args:
        summary: what was known at its beginning.
        file: the summary, or None in a process that writes none.
        steps: returns how many optimizer steps are done.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if file is not None:
            with suppress(OSError):  # a full disk may be why it ended
                write_json(file, summary | _early_end(error, steps()))
        raise


def _early_end(error: BaseException, steps: int) -> dict[str, Any]:
    if isinstance(error, KeyboardInterrupt):
        status, reason = "stopped", f"{str(error) or 'interrupted'} after step {steps}"
    else:
        status, reason = "failed", str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
    return {"status": status, "reason": reason, "finished": now(), "steps": steps}


def write_result(place: Path, *writers: Callable[[Path], Any]) -> None:
    """Have files written into a directory beside their place, then put it there.

    Raises:
        ResultNotWritten: the disk is full or fails; what was at the place is there still.
    """
    beside = place.with_name(f".{place.name}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        for write in writers:
            write(beside)
        if place.is_symlink() or place.is_file():
            place.unlink()
        shutil.rmtree(place, ignore_errors=True)
        beside.rename(place)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)  # its room counts as free
        raise ResultNotWritten(
            f"{place} could not be written ({one_line(error)}; {room_at(place.parent)}). {writable_again(error)} and "
            "continue with --resume: all steps are done, so it only writes"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def now() -> str:
    """The time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
