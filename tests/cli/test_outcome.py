"""How `wishbone train` ends, as far as it takes no run to see it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import typer

from wishbone.cli.outcome import Attempt
from wishbone.run.stop_signals import Stopped


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """Two checkpoints, and what a person put beside them."""
    for name in ("checkpoint-4", "checkpoint-12", "checkpoint-4.bak", "checkpoint-best"):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    return Attempt(Path("tiny.yaml"), [], tmp_path / "run")


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_the_newest_checkpoint_is_named_by_the_first_process(
    attempt: Attempt, rank: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
        attempt.directory = attempt.directory if rank == "0" else None
    with pytest.raises(typer.Exit) as end, attempt.outcome():
        raise Stopped(signal.SIGTERM)
    assert end.value.exit_code == 143
    said = capsys.readouterr().err
    assert ("checkpoint-12 is in" in said and "--resume" in said) if rank != "1" else said == ""
