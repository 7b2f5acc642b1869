"""How `wishbone train` ends, as far as it takes no run to see it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from wishbone.cli import app
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


def test_a_run_directory_that_is_gone_is_said_without_a_traceback(
    attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attempt.directory is not None
    attempt.directory.rename(attempt.directory.with_name("moved"))
    with pytest.raises(typer.Exit) as end, attempt.outcome():
        (attempt.directory / "summary.json").write_text("{}")
    said = capsys.readouterr().err
    assert end.value.exit_code == 1 and not attempt.directory.exists()
    assert "was removed or renamed while the run wrote into it" in " ".join(said.split())
    assert "Error" not in said and "--resume" in said


@pytest.mark.parametrize("arguments", [["train", "run.yaml"], ["doctor"], ["plan", "run.yaml"]])
def test_a_directory_that_was_removed_is_a_wrong_request(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    result = CliRunner().invoke(app, [arguments[0], *(str(tmp_path / name) for name in arguments[1:])])
    assert result.exit_code == 2
    assert "has been removed; change to another one" in result.stderr


@pytest.mark.parametrize(
    ("processes", "said", "shown"),
    [
        ("2", "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:9138. GLHF!", "is gone"),
        ("2", "NCCL error: remote process exited or there was a network error", "is gone"),
        ("2", "size mismatch", "RuntimeError: size mismatch"),
        ("1", "Connection closed by peer", "RuntimeError: Connection closed by peer"),
    ],
)
def test_a_process_that_lost_another_says_so_in_words(
    attempt: Attempt, processes: str, said: str, shown: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(typer.Exit), attempt.outcome():
        raise RuntimeError(said)
    told = capsys.readouterr().err
    assert shown in told and "--resume" in told
    assert ("GLHF" in told) is False
    assert attempt.directory is not None and said in (attempt.directory / "error.log").read_text()
