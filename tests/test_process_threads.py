"""Threads that wait sleep, nobody's own setting is changed, and the OpenMP library of PyTorch hears of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wishbone.process_threads import OTHER_NAMES, WAIT_SETTING, let_waiting_threads_sleep


@pytest.fixture
def before_torch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in (WAIT_SETTING, *OTHER_NAMES):
        monkeypatch.setenv(name, "")  # so that it is put back in the end
        monkeypatch.delenv(name)
    return monkeypatch


def test_threads_sleep(before_torch: pytest.MonkeyPatch) -> None:
    assert let_waiting_threads_sleep()
    assert os.environ[WAIT_SETTING] == "PASSIVE"


@pytest.mark.parametrize("name", [WAIT_SETTING, *OTHER_NAMES])
def test_a_setting_of_ones_own_stays(before_torch: pytest.MonkeyPatch, name: str) -> None:
    before_torch.setenv(name, "7")
    assert not let_waiting_threads_sleep()
    assert os.environ[name] == "7" and not {WAIT_SETTING, *OTHER_NAMES} & os.environ.keys() - {name}


def test_after_the_import_of_torch_nothing_is_claimed(before_torch: pytest.MonkeyPatch) -> None:
    before_torch.setitem(sys.modules, "torch", sys)
    assert not let_waiting_threads_sleep()
    assert WAIT_SETTING not in os.environ


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the library of other systems prints its settings otherwise")
def test_the_openmp_library_hears_of_it() -> None:
    """It prints its settings when PyTorch loads it."""
    ours = {WAIT_SETTING, *OTHER_NAMES}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"OMP_DISPLAY_ENV": "TRUE", "PYTHONPATH": os.pathsep.join(sys.path)}
    program = "import wishbone.process_threads as p; p.let_waiting_threads_sleep(); import torch"
    command = [sys.executable, "-c", program]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in outcome.stderr
