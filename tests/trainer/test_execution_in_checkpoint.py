"""How rows were computed is read back from a checkpoint, with the lengths that they were padded to."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wishbone.engine.execution import Execution, PaddedTo, Room
from wishbone.trainer.execution_in_checkpoint import Asked, Recorded, read_execution, write_execution

ASKED = Asked("a GPU", {"cuda_graphs": "auto"})


@pytest.mark.parametrize("worth", [None, 4096])
def test_lengths_of_recorded_rows_are_read_back(worth: int | None, tmp_path: Path) -> None:
    graphs: Any = SimpleNamespace(lengths=[256, 1024], worth=worth)
    execution = Execution(2048, Room(1e9, 2.0, 3.0), "as needed", graphs=graphs)
    write_execution(tmp_path, 0, execution, ASKED)
    plain = Execution(2048, Room(1e9, 2.0, 3.0), "as needed")
    assert read_execution(tmp_path, 0, ASKED) == Recorded(plain, PaddedTo((256, 1024), worth))
    write_execution(tmp_path, 1, plain, ASKED)
    assert read_execution(tmp_path, 1, ASKED) == Recorded(plain, None)


def test_a_file_without_lengths_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_execution(tmp_path, 0, Execution(2048), ASKED)
    file = tmp_path / "execution-0.json"
    file.write_text(file.read_text().replace('"graphs": null', '"graphs": true'))
    with caplog.at_level(logging.WARNING):
        assert read_execution(tmp_path, 0, ASKED) is None
    assert "so rows are measured again" in caplog.text
