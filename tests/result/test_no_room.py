"""Where a disk is full, what was there stays whole, nothing half is left, and the message says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_stand_in import hub_stand_in
from no_room import contents, files_up_to
from result.conftest import Command

from wishbone.run import preflight

OLD = {"merged": ("config.json", "model.safetensors"), "o": ("Modelfile", "model.gguf")}
PLACES = {"--merged": "merged", "--gguf": "t.gguf", "--ollama": "o", "--adapter-gguf": "a.gguf"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "room"), [("--merged", 1_000), ("--merged", 40_000), ("--gguf", 40_000), ("--ollama", 40_000),
                         ("--adapter-gguf", 1_000)]
)  # fmt: skip
def test_an_export_without_room_leaves_what_was_there(
    option: str, room: int, run: Path, wishbone: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(preflight, "PROBE", 1)  # less than what is written, as the mebibyte is beside a real model
    out = tmp_path / "out"
    for name in PLACES.values():
        for file in OLD.get(name, ("",)):
            (out / name / file).parent.mkdir(parents=True, exist_ok=True)
            (out / name / file).write_text("old")
    before = contents(out)
    with files_up_to(room):
        refused = wishbone("export", run, option, out / PLACES[option], "--overwrite")
        elsewhere = wishbone("export", run, option, tmp_path / "new" / "below" / PLACES[option])
    for result in (refused, elsewhere):
        assert result.exit_code == 2 and "cannot be written (File too large: " in result.stderr.replace("\n", " ")
        assert "make room there, or name another place" in " ".join(result.stderr.split())
    assert contents(out) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_weights_of_a_run_are_not_replaced_by_an_export_of_them(full_run: Path, wishbone: Command):
    before = contents(full_run)
    result = wishbone("export", full_run, "--merged", full_run / "model", "--overwrite")
    assert result.exit_code == 2 and "own directory" in result.stderr
    assert contents(full_run) == before


def test_a_place_named_twice_is_refused(run: Path, wishbone: Command, tmp_path: Path):
    result = wishbone("export", run, "--gguf", tmp_path / "a.gguf", "--adapter-gguf", tmp_path / "a.gguf")
    assert result.exit_code == 2 and "named twice" in result.stderr


def test_a_push_without_room_for_temporary_files_says_where_to_put_them(
    run: Path, wishbone: Command, monkeypatch: pytest.MonkeyPatch
):
    with hub_stand_in() as hub, files_up_to(1_000):
        result = wishbone("push", run, "someone/mine", "--base", "someone/base")
        assert result.exit_code == 2 and "set TMPDIR to a directory with room" in " ".join(result.stderr.split())
        assert not hub.commits


@pytest.mark.slow
def test_answers_and_results_are_shown_where_the_run_cannot_be_written_to(run: Path, wishbone: Command, tmp_path: Path):
    before = contents(run)
    with files_up_to(10):
        compared = wishbone("compare", run, "--prompt", "Hi", "--max-new-tokens", "2")
        reported = wishbone("report", run)
    assert compared.exit_code == 0 and "Before" in compared.stdout
    assert "answers.json' cannot be written" in compared.stderr.replace("\n", "")
    assert reported.exit_code == 2 and "Status" in reported.stdout
    assert "copy the run to another place" in " ".join(reported.stderr.split())
    assert contents(run) == before
