"""Results that are there whole or not at all, and summaries of runs that end early."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from ordinary_user import ordinary_user

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


def test_a_disk_without_inodes_is_said_to_be_full_though_bytes_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*here[:5], 1000, 0, 0, *here[8:10])))
    with pytest.raises(ResultNotWritten, match=r"can hold no more files, whatever their size \(no inode is free\)"):
        write_result(tmp_path / "adapter", half)


def test_a_directory_that_may_not_be_written_needs_no_room(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with ordinary_user(), pytest.raises(ResultNotWritten, match=r"Let the directory be written to and continue with"):
        write_result(tmp_path / "adapter", whole)


def test_a_rest_of_a_killed_process_is_not_part_of_the_result(tmp_path: Path) -> None:
    (tmp_path / ".adapter").mkdir()
    (tmp_path / ".adapter" / "rest").touch()
    write_result(tmp_path / "adapter", whole)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["adapter", "adapter/weights"]


def test_a_file_or_a_link_at_its_place_gives_way_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        write_result(tmp_path / name, whole)
        assert (tmp_path / name / "weights").read_text() == "whole" and not (tmp_path / name).is_symlink()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["mine"]


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
