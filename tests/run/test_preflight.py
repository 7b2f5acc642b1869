"""What cannot be read or written is told before anything is loaded, with the remedy, and ends with status 2."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
from ordinary_user import ordinary_user
from tiny import tiny_model, tiny_tokenizer

from wishbone.config import parse_config
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError
from wishbone.run.preflight import check_access

UNREADABLE = Path("/proc/self/mem")  # a file whose first byte nobody reads, root included


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "data cache")
    monkeypatch.setenv("WISHBONE_CACHE", str(tmp_path / "model cache"))
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(tmp_path: Path, **fields: str) -> RunConfig:
    values = {
        "model": {"name": fields.get("model", "owner/model")},
        "data": {"train": fields.get("train", str(tmp_path / "pairs.jsonl"))},
        "training": {"reference_store": fields.get("store", "auto")},
        "output": {"dir": fields.get("output", str(tmp_path / "a" / "run"))},
    }
    return parse_config(json.dumps(values))


def refusal(asked: RunConfig, **options: bool) -> str:
    with pytest.raises(RequestError) as error:
        check_access(asked, **options)
    return str(error.value)


def test_a_run_that_can_do_everything_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    check_access(config(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["output", "data cache", "model cache"])
def test_a_file_in_place_of_a_directory_is_named_with_what_to_set(place: str, tmp_path: Path) -> None:
    (tmp_path / place).write_text("a file")
    said = refusal(config(tmp_path, output=str(tmp_path / "output" / "run"), model="smollm2-135m-instruct"))
    remedy = {"output": "output.dir", "data cache": "HF_DATASETS_CACHE", "model cache": "WISHBONE_CACHE"}[place]
    assert f"{place} is not a directory" in said
    assert remedy in said
    assert (tmp_path / place).read_text() == "a file"


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    for place in ("output", "data cache"):
        (tmp_path / place).write_text("a file")
    (tmp_path / "pairs.jsonl").unlink()
    (tmp_path / "pairs.jsonl").symlink_to(UNREADABLE)
    said = refusal(config(tmp_path, output=str(tmp_path / "output" / "run")))
    assert said.startswith("3 problems")


def test_a_dry_run_needs_no_place_for_results(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file")
    check_access(config(tmp_path, output=str(tmp_path / "output" / "run")), writes=False)


@contextmanager
def nothing_can_be_written() -> Iterator[None]:
    """A disk quota of zero, which root has as well."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_found_by_writing(tmp_path: Path) -> None:
    with nothing_can_be_written():
        said = refusal(config(tmp_path))
    assert "output.dir" in said
    assert "HF_DATASETS_CACHE" in said
    assert "make room there" in said


@pytest.mark.parametrize("field", ["train", "model"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_input_that_cannot_be_read_is_named(field: str, kind: str, tmp_path: Path) -> None:
    name = {"train": "pairs.jsonl", "model": "m.gguf"}[field]
    place = tmp_path / "inputs"
    place.mkdir()
    (place / name).symlink_to(UNREADABLE)
    if kind == "directory":
        (place / f"other{name}").write_text("{}")
    asked = str(place / name if kind == "file" else place)
    said = refusal(config(tmp_path, **{field: asked}))
    assert name in said
    assert "cannot be read (Input/output error)" in said


def test_input_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").chmod(0)
    with ordinary_user():
        assert "Permission denied" in refusal(config(tmp_path))


@pytest.mark.parametrize("field", ["train", "model"])
@pytest.mark.parametrize("shut", ["all", "a part"])
def test_a_directory_that_may_not_be_searched_is_named(tmp_path: Path, field: str, shut: str) -> None:
    """A part that cannot be listed may hold pairs: a run without them would be another one."""
    inner = tmp_path / "inputs" / "inner"
    inner.mkdir(parents=True)
    for place in (inner, inner.parent):
        (place / "pairs.jsonl").write_text("{}")
    closed = inner if shut == "a part" else inner.parent
    closed.chmod(0)
    try:
        with ordinary_user():
            said = refusal(config(tmp_path, **{field: str(inner.parent)}))
    finally:
        closed.chmod(0o755)
    assert closed.name in said and "Permission denied" in said


def test_a_place_for_checkpoints_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    place = tmp_path / "run" / "checkpoints"
    place.mkdir(parents=True)
    place.chmod(0o555)
    with ordinary_user():
        said = refusal(config(tmp_path, output=str(place.parent)))
    assert f"{place}' cannot be written (Permission denied)" in said


def test_a_database_of_another_program_as_the_store_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "accounts.db") as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.close()
    said = refusal(config(tmp_path, store=str(tmp_path / "accounts.db")))
    assert "accounts.db" in said
    assert "is a database of another application" in said


COMMAND = """
import sys
from wishbone.cli import main
sys.argv = ["wishbone", "train", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print("torch" in sys.modules, "transformers" in sys.modules, end.code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["output", "input", "cache", "store"])
def test_the_command_ends_with_status_2_before_torch_is_imported(problem: str, tmp_path: Path) -> None:
    tiny_model("llama", vocab_size=320).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "a file").write_text("not a directory")
    (tmp_path / "unreadable.jsonl").symlink_to(UNREADABLE)
    (tmp_path / "run.yaml").write_text("model: {name: model}\ndata: {train: pairs.jsonl}\n")
    override = {
        "output": "output.dir=a file/run",
        "input": "data.train=unreadable.jsonl",
        "store": "training.reference_store=pairs.jsonl",
        "cache": "training.epochs=1",
    }[problem]
    cache = tmp_path / ("a file" if problem == "cache" else "cache")
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "run.yaml", override],
        cwd=tmp_path,
        env={**os.environ, "HF_DATASETS_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "False False 2\n", done.stderr
    assert done.stderr.startswith("wishbone: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
