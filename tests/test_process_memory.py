"""Segments of GPU memory that grow are asked for where there are any, and nobody's own setting is changed."""

from __future__ import annotations

import os
import platform
import sys

import pytest

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
