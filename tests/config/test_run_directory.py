"""A run gets a directory of its own, and only a run that exists is continued."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wishbone.config import parse_config
from wishbone.config.run_directory import choose_run_directory
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


@pytest.mark.parametrize("trace", ["config.yaml", "checkpoints"])
def test_a_named_directory_with_a_run_is_continued_or_refused(tmp_path: Path, trace: str):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    named = config("output.dir=mine")
    assert choose_run_directory(named) == tmp_path / "mine"
    with pytest.raises(RequestError, match="holds no run to continue; start one without --resume"):
        choose_run_directory(named, resume=True)
    (tmp_path / "mine" / trace).mkdir()
    assert choose_run_directory(named, resume=True) == tmp_path / "mine"
    with pytest.raises(RequestError, match="already holds a run; continue it with --resume"):
        choose_run_directory(named)
