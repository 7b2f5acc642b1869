"""Kernels that are handed over are compiled by threads, not launched, and found by what launches them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None or "TRITON_INTERPRET" in os.environ, reason="needs Triton's compiler")
def test_kernels_are_compiled_by_threads_and_launched_later():
    script = Path(__file__).with_name("kernels_ahead.py")
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout.splitlines()[-1])
    assert not told["launched within"] and told["means nothing"] and not told["outside"] and told["hook is back"]
    everything = told["ignored"] + told["after"]
    assert everything.count("compiled add_low_rank in thread") == 1  # handed over twice
    assert everything.count("compiled add_low_rank in main") == 1  # that of another rank, launched within
    assert told["ignored"].count("launched add_low_rank") == 1
    assert told["after"][-1] == "launched add_low_rank" and "compiled add_low_rank in main" not in told["after"]
    assert told["again"] == ["launched add_low_rank"]
    assert told["asked"] >= 3
