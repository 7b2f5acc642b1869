"""Checkpoints on disk: whole or not there, checked when they are read, and only those kept that are to be kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wishbone.config.run_directory import checkpoints_in
from wishbone.trainer.checkpoint_files import damage, is_rolling, newest_sound, publish, rotate

FILES = {
    "adapter_model.safetensors": b"weights" * 100,
    "optimizer.pt": b"moments" * 100,
    "ref/adapter.bin": b"x",
    "fingerprint.json": b"{}",
}


def checkpoint(folder: Path, step: int, *, rolling: bool = False) -> Path:
    written = folder / ".saving" / f"checkpoint-{step}"
    for name, content in FILES.items():
        (written / name).parent.mkdir(parents=True, exist_ok=True)
        (written / name).write_bytes(content)
    publish(written, folder / written.name, rolling=rolling)
    return folder / written.name


def test_a_published_checkpoint_is_sound_and_its_manifest_lists_every_file(tmp_path: Path) -> None:
    place = checkpoint(tmp_path, 3)
    assert damage(place) is None
    files = json.loads((place / "manifest.json").read_text())["files"]
    assert {name: facts["size"] for name, facts in files.items()} == {n: len(c) for n, c in FILES.items()}


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    place = checkpoint(tmp_path, 3)
    (place / "optimizer.pt").write_bytes(b"damaged")
    (place / "mine.txt").write_text("put there by a callback")
    assert damage(checkpoint(tmp_path, 3)) is None
    assert (place / "mine.txt").read_text() == "put there by a callback"


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("harm", ["absent", "empty", "half", "flipped", "longer"])
def test_damage_of_any_file_is_seen_and_the_older_checkpoint_is_used(tmp_path: Path, name: str, harm: str) -> None:
    older, newer = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    path = newer / name
    content = bytearray(path.read_bytes())
    match harm:
        case "absent":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "half":
            path.write_bytes(content[: len(content) // 2])
        case "longer":
            path.write_bytes(content + b"x")
        case "flipped":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    choice = newest_sound(tmp_path)
    assert choice.path == older
    (line,) = choice.skipped
    assert "checkpoint-10 is damaged and was skipped" in line
    assert name in line or name == "manifest.json", "a bit of a manifest accuses a file or the manifest"


@pytest.mark.parametrize(
    "text",
    ['{"files": {}}', "[" * 100_000, '{"files": {"optimizer.pt": {"size": 1e999, "sha256": "x"}}}', "{", "\0" * 90],
)
def test_a_manifest_that_vouches_for_nothing_is_damage(tmp_path: Path, text: str) -> None:
    older, newer = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    (newer / "manifest.json").write_text(text)
    choice = newest_sound(tmp_path)
    assert choice.path == older
    assert "manifest.json" in choice.skipped[0]
    assert not is_rolling(newer)


def test_without_a_sound_one_there_is_none(tmp_path: Path) -> None:
    assert newest_sound(tmp_path / "absent").path is None
    for step in (1, 2):
        (checkpoint(tmp_path, step) / "optimizer.pt").unlink()
    choice = newest_sound(tmp_path)
    assert choice.path is None and len(choice.skipped) == 2


ASKED, ROLLING = False, True


@pytest.mark.parametrize(
    ("there", "limit", "kept"),
    [
        ([(1, ASKED), (2, ASKED), (3, ASKED)], None, [1, 2, 3]),
        ([(1, ASKED), (2, ASKED), (3, ASKED)], 2, [2, 3]),
        ([(1, ASKED), (2, ROLLING), (3, ROLLING)], 2, [1, 3]),
        ([(1, ROLLING), (2, ROLLING), (3, ROLLING)], 2, [2, 3]),
        ([(1, ASKED), (2, ASKED), (3, ROLLING), (4, ROLLING)], 2, [1, 2, 4]),
        ([(1, ASKED), (2, ROLLING), (3, ASKED)], 2, [1, 3]),
        ([(1, ROLLING), (2, ASKED)], None, [1, 2]),
        ([(1, ASKED), (2, ROLLING), (10, ROLLING)], 1, [10]),
    ],
)
def test_what_is_kept(tmp_path: Path, there: list[tuple[int, bool]], limit: int | None, kept: list[int]) -> None:
    for step, rolling in there:
        checkpoint(tmp_path, step, rolling=rolling)
    rotate(tmp_path, limit, [])
    assert [path.name for path in checkpoints_in(tmp_path)] == [f"checkpoint-{step}" for step in kept]


def test_the_best_one_is_kept(tmp_path: Path) -> None:
    places = [checkpoint(tmp_path, step) for step in (1, 2, 3, 4)]
    rotate(tmp_path, 2, [places[0]])
    assert checkpoints_in(tmp_path) == [places[0], places[2], places[3]]


@pytest.mark.parametrize("limit", [1, 2])
def test_the_one_just_written_is_the_newest_also_where_a_later_step_is_there(tmp_path: Path, limit: int) -> None:
    """The one of step 6 was damaged, or training went back to step 4."""
    places = [checkpoint(tmp_path, step) for step in (4, 6, 5)]
    rotate(tmp_path, limit, [], places[2])
    assert checkpoints_in(tmp_path) == ([places[0], places[2]] if limit == 2 else [places[2]])
