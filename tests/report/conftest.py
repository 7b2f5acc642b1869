from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import WriteRun, write_fake_run
from learned import Learned, learn


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    return lambda **options: write_fake_run(tmp_path / "run", **options)


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    return learn(tmp_path_factory.mktemp("learned"))
