from __future__ import annotations

from pathlib import Path

import pytest
from no_room import contents, files_up_to

from wishbone.atomic_file import whole_file, write_text
from wishbone.cli import app
from wishbone.paths import unwritten


@pytest.mark.parametrize("new", [False, True])
def test_without_room_nothing_changes_and_nothing_is_left(new: bool, tmp_path: Path):
    path = tmp_path / ("x" * 255)  # the longest name there is
    if not new:
        write_text(path, "old")
    before = contents(tmp_path)
    with files_up_to(100), pytest.raises(OSError, match="large"), whole_file(path, new=new) as file:
        file.write("new" * 100)
    assert contents(tmp_path) == before


def test_a_new_file_replaces_none_that_came_meanwhile(tmp_path: Path):
    path = tmp_path / "f"
    with pytest.raises(FileExistsError), whole_file(path, new=True) as file:
        file.write("new")
        path.write_text("theirs")
    assert contents(tmp_path).keys() == {"f"} and path.read_text() == "theirs"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "make room there, or name"),
        (OSError(30, "Read-only file system"), "(Read-only file system); let it be written to, or name"),
        (ValueError("I/O error: No space left on device (os error 28)"), "(No space left on device: "),
        (OSError("8 requested and 4 written"), "(8 requested and 4 written: "),
        (OSError(20, "Not a directory"), "is not a directory); name"),
    ],
)
def test_each_reason_has_its_remedy(error: Exception, said: str, tmp_path: Path):
    assert said in unwritten(tmp_path / "f", error)


@pytest.mark.parametrize("option", ["--html", "--fix"])
def test_check_without_room_leaves_what_was_there(option: str, tmp_path: Path):
    from typer.testing import CliRunner

    row = '{"prompt": "Which lake is deepest?", "chosen": "Baikal.", "rejected": "Lake Como."}\n'
    (tmp_path / "pairs.jsonl").write_text(row * 3)
    place = tmp_path / {"--html": "c.html", "--fix": "c.jsonl"}[option]
    if option == "--html":
        place.write_text("old")
    before = contents(tmp_path)
    with files_up_to(10):
        result = CliRunner().invoke(app, ["check", str(tmp_path / "pairs.jsonl"), option, str(place)])
    assert result.exit_code == 2 and f"{option}: '{place}' cannot be written" in result.stderr.replace("\n", "")
    assert contents(tmp_path) == before


def test_init_leaves_no_half_file(tmp_path: Path):
    from typer.testing import CliRunner

    place = tmp_path / "run.yaml"
    words = ["init", "--model", "m", "--data", "d", "--parameters-billion", "1", "--output", str(place)]
    with files_up_to(10):
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "make room there" in " ".join(result.stderr.split())
    assert not place.exists()
