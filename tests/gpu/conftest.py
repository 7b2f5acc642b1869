"""Tests of one GPU see one, as a run does that asks for no more: trainers refuse several in one process."""

from __future__ import annotations

import pytest

from wishbone.run.launch import choose_one_gpu


@pytest.fixture(autouse=True, scope="module")
def one_gpu(request: pytest.FixtureRequest) -> None:
    """Hide all GPUs but the first from this process; tests of several start processes of their own."""
    if request.path.name != "test_two_gpus.py":
        choose_one_gpu()
