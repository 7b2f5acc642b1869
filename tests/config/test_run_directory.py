"""A run gets a directory of its own, and only a run that exists is continued."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wishbone.config import parse_config
from wishbone.config.run_directory import LOCK, checkpoints_in, choose_run_directory, claimed_run_directory
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError


def config(*overrides: str) -> RunConfig:
    return parse_config("", ["model.name=org/Some-Model", "data.train=x", *overrides])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_made_name_has_the_model_or_the_given_name_and_the_time(tmp_path: Path):
    made = choose_run_directory(config())
    assert re.fullmatch(r"Some-Model-\d{8}-\d{6}", made.name)
    assert made.parent == tmp_path / "runs"
    assert not made.exists()
    assert choose_run_directory(config(), name="../a b/ü?").name.startswith("a-b-")
    assert choose_run_directory(config(), name="...").name.startswith("run-")


def test_two_runs_never_share_a_directory():
    made = []
    for _ in range(4):
        made.append(choose_run_directory(config(), name="x"))
        made[-1].mkdir(parents=True)
    assert len(set(made)) == 4


def test_the_latest_run_of_that_name_is_continued(tmp_path: Path):
    for name in ("x-20250101-000000", "x-20260101-000000", "x-y-20270101-000000", "xx-20280101-000000", "x-notes"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert choose_run_directory(config(), name="x", resume=True).name == "x-20260101-000000"
    with pytest.raises(RequestError, match=r"there is no run 'z' in '.*' to continue"):
        choose_run_directory(config(), name="z", resume=True)


@pytest.mark.parametrize("trace", ["config.yaml", "checkpoints/checkpoint-1"])
def test_a_named_directory_with_a_run_is_continued_or_refused(tmp_path: Path, trace: str):
    named = config("output.dir=mine")
    assert choose_run_directory(named) == tmp_path / "mine"
    with pytest.raises(RequestError, match="holds no run to continue; start one without --resume"):
        choose_run_directory(named, resume=True)
    (tmp_path / "mine" / trace).parent.mkdir(parents=True)
    (tmp_path / "mine" / trace).touch() if trace == "config.yaml" else (tmp_path / "mine" / trace).mkdir()
    assert choose_run_directory(named, resume=True) == tmp_path / "mine"
    with pytest.raises(RequestError, match="already holds a run; continue it with --resume"):
        choose_run_directory(named)


def test_files_of_others_are_listed_and_left(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    for name in ("notes.txt", "metrics.jsonl"):
        (tmp_path / "mine" / name).touch()
    with pytest.raises(RequestError, match=r"is not empty and holds no run \(it has 'metrics.jsonl', 'notes.txt'\)"):
        choose_run_directory(config("output.dir=mine"))
    with pytest.raises(RequestError, match=r"notes.txt is not a directory"):
        choose_run_directory(config("output.dir=mine/notes.txt"))


def test_what_is_in_the_way_of_a_run_that_continues_is_named(tmp_path: Path):
    (tmp_path / "mine" / "summary.json").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints", ".lock"):
        (tmp_path / "mine" / name).touch()
    with pytest.raises(RequestError, match=r"summary.json' is a directory.*move it") as refusal:
        choose_run_directory(config("output.dir=mine"), resume=True)
    assert "checkpoints' is not a directory" in refusal.value.problems[1]


def test_checkpoints_are_known_by_their_names(tmp_path: Path):
    for name in (
        "checkpoint-10",
        "checkpoint-9",
        "checkpoint-9.bak",
        "checkpoint-best",
        f"checkpoint-{'9' * 5000}"[:200],
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").touch()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_a_run_that_writes_nothing_leaves_nothing(tmp_path: Path):
    for settings in ([], ["output.dir=new/mine"]):
        with pytest.raises(KeyError), claimed_run_directory(config(*settings)) as directory:
            (directory / "checkpoints").mkdir()
            (directory / "metrics.jsonl").touch()
            raise KeyError
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "given").mkdir()
    with claimed_run_directory(config("output.dir=given")):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "given"]


HOLD = """\
import sys
from wishbone.config import parse_config
from wishbone.config.run_directory import claimed_run_directory
from wishbone.errors import RequestError
config = parse_config("", ["model.name=org/Some-Model", "data.train=x", *sys.argv[1:]])
try:
    with claimed_run_directory(config) as directory:
        print(directory, flush=True)
        sys.stdin.read()
except RequestError as error:
    print(error)
"""


def holder(*settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, *settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.slow
def test_a_directory_belongs_to_the_run_that_lives(tmp_path: Path):
    """Four runs without a name begin at once, and two with the same; then one is killed."""
    unnamed = [holder() for _ in range(3)]
    named = [holder("output.dir=mine") for _ in range(2)]
    made = [said(process) for process in unnamed]
    assert len(set(made)) == 3 and all(Path(name).is_dir() for name in made)
    lines = sorted(map(said, named))
    assert lines[0] == str(tmp_path / "mine")
    assert "a run that has not ended writes into" in lines[1] and "(process " in lines[1]
    with (
        pytest.raises(RequestError, match="a run that has not ended"),
        claimed_run_directory(config("output.dir=mine")),
    ):
        pass
    (tmp_path / "mine" / "config.yaml").touch()
    resumed = config("output.dir=mine")
    with pytest.raises(RequestError, match="a run that has not ended"), claimed_run_directory(resumed, resume=True):
        pass
    for process in (*unnamed, *named):
        process.kill()
        process.communicate()
    assert (tmp_path / "mine" / LOCK).exists(), "a run that was killed leaves its lock file"
    with claimed_run_directory(resumed, resume=True) as directory:
        assert directory == tmp_path / "mine"
    assert not (directory / LOCK).exists()
    with claimed_run_directory(config(f"output.dir={made[0]}")) as directory:
        assert str(directory) == made[0], "a run that was killed before it wrote anything is in nobody's way"
