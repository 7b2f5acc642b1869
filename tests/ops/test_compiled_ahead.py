"""Kernels that are handed over are compiled by threads, not launched, and found by what launches them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from wishbone.ops.compiled_ahead import can_compile_ahead

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None or "TRITON_INTERPRET" in os.environ, reason="needs Triton's compiler"
)


@pytest.fixture(scope="module")
def run() -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("kernels_ahead.py")
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def told(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[0])
    return found


@pytest.mark.slow
def test_kernels_are_compiled_by_threads_and_launched_later(told: dict[str, Any]) -> None:
    assert not told["launched within"] and told["means nothing"] and not told["outside"] and told["hook is back"]
    everything = told["within"] + told["after"]
    assert everything.count("compiled add_low_rank in thread") == 1  # handed over twice
    assert everything.count("compiled add_low_rank in main") == 1  # that of another rank, launched within
    assert told["after"][-1] == "launched add_low_rank" and "compiled add_low_rank in main" not in told["after"]
    assert told["again"] == ["launched add_low_rank"]
    assert told["asked"] >= 3


@pytest.mark.slow
def test_only_the_thread_of_the_pass_leaves_kernels_alone(told: dict[str, Any]) -> None:
    assert told["one thread"]
    assert told["within"].count("launched add_low_rank") == 2  # the one that looks at values, and another thread's


@pytest.mark.slow
def test_what_a_thread_cannot_compile_is_compiled_where_it_is_launched(told: dict[str, Any]) -> None:
    assert told["of others"] == ["compiled of_size in main", "loaded of_size", "launched of_size"]
    assert told["hard ones are over"] and told["hard"] == []
    assert told["right constant"] and told["fails at launch"]


@pytest.mark.slow
def test_nobody_waits_for_a_thread_that_has_not_begun(
    told: dict[str, Any], run: subprocess.CompletedProcess[str]
) -> None:
    assert told["in this thread"] and told["a forked process goes on"]
    assert len(run.stdout.splitlines()) <= 3  # the interpreter ends with one kernel begun, and perhaps one more
    # Triton 3.9 warns there of its own settings, and its kernels complain that no GPU unloads them.
    assert "/src/wishbone/" not in run.stderr


def test_a_cpu_and_the_interpreter_compile_nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    assert not can_compile_ahead(torch.device("cpu"))
    assert can_compile_ahead(torch.device("cuda", 0))
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    assert not can_compile_ahead(torch.device("cuda", 0))
