from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import WriteRun, write_fake_run


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    return lambda **options: write_fake_run(tmp_path / "run", **options)
