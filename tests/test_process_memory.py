"""Segments of GPU memory that grow are asked for where there are any, and nobody's own setting is changed."""

from __future__ import annotations

import os
import platform
import sys

import pytest

from wishbone import process_memory
from wishbone.process_memory import ALLOCATOR_SETTING, OLDER_NAMES, let_device_memory_grow

LINUX, WSL = "6.8.0-45-generic", "5.15.167.4-microsoft-standard-WSL2"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ALLOCATOR_SETTING, *OLDER_NAMES):
        monkeypatch.setenv(name, "")  # so that it is put back in the end
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("system", "release", "asked"), [("linux", LINUX, True), ("linux", WSL, False), ("win32", "10", False)]
)
def test_where_there_are_such_segments(monkeypatch: pytest.MonkeyPatch, system: str, release: str, asked: bool):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert let_device_memory_grow() is asked
    assert (os.environ.get(ALLOCATOR_SETTING) == "expandable_segments:True") is asked


@pytest.mark.parametrize("name", [ALLOCATOR_SETTING, *OLDER_NAMES])
def test_a_setting_of_ones_own_stays(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "max_split_size_mb:512")
    assert not let_device_memory_grow()
    assert os.environ[name] == "max_split_size_mb:512"
    assert not {ALLOCATOR_SETTING, *OLDER_NAMES} & os.environ.keys() - {name}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_freed_memory_is_given_back_within_the_context_alone(monkeypatch: pytest.MonkeyPatch):
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(process_memory, "_set_thresholds", lambda *sizes: set_to.append(sizes) or True)
    monkeypatch.setattr(process_memory._Kept, "now", False)
    for name in ("THP_MEM_ALLOC_ENABLE", *process_memory.MALLOC_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    with process_memory.host_memory_given_back():
        assert not set_to
    assert process_memory.keep_host_memory()
    with pytest.raises(KeyError), process_memory.host_memory_given_back():
        raise KeyError
    kept, given = (process_memory.HEAP_BYTES, process_memory.KEPT_BYTES), (process_memory.DEFAULT_BYTES,) * 2
    assert set_to == [kept, given, kept]
