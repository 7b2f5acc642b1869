"""A cached directory is whole or absent, and is built by one process only."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from wishbone.cache import MANIFEST, cache_root, kept_directory
from wishbone.errors import RequestError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WISHBONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _write(directory: Path) -> None:
    (directory / "weights").write_bytes(b"0123456789")
    (directory / "sub").mkdir()
    (directory / "sub" / "names").write_text("a b c")


def test_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("WISHBONE_CACHE", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/home/someone/own")
    monkeypatch.delenv("WISHBONE_CACHE")
    assert cache_root() == Path("/xdg/wishbone")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path("/home/someone/.cache/wishbone")


def test_a_sound_directory_is_built_once(root: Path) -> None:
    built = []

    def build(directory: Path) -> None:
        built.append(directory)
        _write(directory)

    first = kept_directory("thing", build)
    assert first == root / "thing"
    assert (first / "weights").read_bytes() == b"0123456789"
    assert kept_directory("thing", build) == first
    assert len(built) == 1
    assert built[0] != first  # built elsewhere, moved into place whole


@pytest.mark.parametrize("damage", ["cut", "changed", "lost", "manifest lost", "manifest cut", "manifest not a table"])
def test_damage_is_said_and_repaired(root: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    place = kept_directory("thing", _write)
    if damage == "cut":
        (place / "weights").write_bytes(b"01234")
    elif damage == "changed":
        (place / "weights").write_bytes(b"012345678X")
    elif damage == "lost":
        (place / "sub" / "names").unlink()
    elif damage == "manifest lost":
        (place / MANIFEST).unlink()
    elif damage == "manifest cut":
        (place / MANIFEST).write_text('{"weights": {"size"')
    else:
        (place / MANIFEST).write_text('["weights"]')
    with caplog.at_level(logging.WARNING):
        assert kept_directory("thing", _write) == place
    assert (place / "weights").read_bytes() == b"0123456789"
    assert (place / "sub" / "names").read_text() == "a b c"
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text
    caplog.clear()
    kept_directory("thing", _write)
    assert not caplog.records


def test_a_copied_directory_is_sound_though_its_times_differ(root: Path) -> None:
    place = kept_directory("thing", _write)
    os.utime(place / "weights", (1, 1))
    assert kept_directory("thing", _fail) == place


def test_a_failed_build_leaves_nothing_behind(root: Path) -> None:
    def break_off(directory: Path) -> None:
        _write(directory)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kept_directory("thing", break_off)
    assert [path.name for path in root.iterdir() if path.is_dir()] == []
    assert kept_directory("thing", _write).is_dir()


def test_leftovers_of_a_killed_build_are_removed(root: Path) -> None:
    root.mkdir()
    stale = root / ".thing.abc.building"
    stale.mkdir()
    kept_directory("thing", _write)
    assert not stale.exists()


def test_an_unwritable_cache_is_a_request_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WISHBONE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RequestError, match="WISHBONE_CACHE"):
        kept_directory("thing", _write)


def _fail(directory: Path) -> None:
    raise AssertionError("built again")


def _slow_build(directory: Path) -> None:
    time.sleep(0.3)
    _write(directory)
    with (directory.parents[1] / "log").open("a") as log:
        log.write("built\n")


def _process(root: str) -> None:
    os.environ["WISHBONE_CACHE"] = root
    assert (kept_directory("thing", _slow_build) / "weights").read_bytes() == b"0123456789"


@pytest.mark.slow
def test_processes_at_once_build_once(root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(str(root),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (root / "log").read_text() == "built\n"
