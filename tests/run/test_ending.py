"""Results that are there whole or not at all, and summaries of runs that end early."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from wishbone.errors import RunError
from wishbone.run.ending import ResultNotWritten, early_end_noted, write_result


def half(folder: Path) -> None:
    """What a full disk does to a writer: one file is there, the next one fails."""
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text("new")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def whole(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text("whole")


def test_a_result_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "adapter"
    with pytest.raises(ResultNotWritten, match=r"adapter could not be written \(.*No space left on device.*--resume"):
        write_result(place, half)
    assert not any(tmp_path.iterdir())
    write_result(place, whole)
    with pytest.raises(ResultNotWritten):
        write_result(place, whole, half)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (place / "weights").read_text() == "whole"


def test_a_rest_of_a_killed_process_is_not_part_of_the_result(tmp_path: Path) -> None:
    (tmp_path / ".adapter").mkdir()
    (tmp_path / ".adapter" / "rest").touch()
    write_result(tmp_path / "adapter", whole)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["adapter", "adapter/weights"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt("SIGTERM"), "stopped", "SIGTERM after step 3"),
        (KeyboardInterrupt(), "stopped", "interrupted after step 3"),
        (RunError("the disk is full"), "failed", "the disk is full"),
        (ValueError("odd"), "failed", "ValueError: odd"),
    ],
)
def test_the_summary_says_how_a_run_ended(tmp_path: Path, error: BaseException, status: str, reason: str) -> None:
    file = tmp_path / "summary.json"
    with pytest.raises(type(error)), early_end_noted({"status": "running", "model": "m"}, file, lambda: 3):
        raise error
    said = json.loads(file.read_text())
    assert (said["status"], said["reason"], said["steps"], said["model"]) == (status, reason, 3, "m")
