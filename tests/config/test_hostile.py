"""Configurations and names that nobody means are refused in a screen of words, in bounded time."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from ordinary_user import ordinary_user
from soak.run_configs import NAMES, SOUND, TARGETS
from soak.trials import run_case

from wishbone.config import load_config, parse_config
from wishbone.config.run_directory import choose_run_directory
from wishbone.errors import SCREEN, RequestError
from wishbone.paths import files_below, user_path

SEEDS = range(150)
WIDEST = SCREEN + 2000


@pytest.mark.slow
def test_texts_damaged_at_random_are_read_or_refused(tmp_path: Path) -> None:
    outcomes = [run_case(TARGETS[0], seed, tmp_path / "case") for seed in SEEDS]
    assert not [outcome for outcome in outcomes if outcome.is_finding]
    assert {outcome.kind for outcome in outcomes} == {"read", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("section", ["training", None])
def test_twenty_thousand_unknown_keys_are_a_screen_of_words_and_a_count(section: str | None) -> None:
    keys = dict.fromkeys((f"{kind}{number}" for kind in "kl" for number in range(10_000)), 1)
    text = json.dumps({**SOUND, section: keys} if section else SOUND | keys).replace(" ", "")
    began = time.monotonic()
    with pytest.raises(RequestError) as error:
        parse_config(text)
    assert time.monotonic() - began < 30
    said = str(error.value)
    assert said.startswith("20000 problems")
    assert said.endswith("more problems")
    assert "no such" in said
    assert len(said) < WIDEST


def test_a_key_as_long_as_a_file_may_be_is_cut() -> None:
    with pytest.raises(RequestError) as error:
        parse_config(json.dumps({**SOUND, "k" * 200_000: 1}))
    assert len(str(error.value)) < 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["data.train", "model.name", "output.dir", "training.reference_store"])
def test_odd_names_are_taken_or_refused(field: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    section, key = field.split(".")
    text = json.dumps({**SOUND, section: {**SOUND[section], key: name}})
    (tmp_path / "run.yaml").write_text(text)
    try:
        config = load_config(tmp_path / "run.yaml")
        choose_run_directory(config, name="n" * 300)
    except RequestError as error:
        assert field in str(error) or "surrogate" in str(error)
        assert len(str(error)) < WIDEST


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("~nosuchuser/pairs.jsonl", "there is no home directory of such a user"),
        ("n" * 300, "File name too long"),
        ("a\0b", "a character that no path may hold"),
        ("./\ud800", "a character that no path may hold"),
    ],
)
def test_a_name_that_no_file_has_says_why(name: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as error:
        user_path(name)
    assert len(str(error.value)) < 400


def test_links_in_a_circle_and_directories_that_may_not_be_searched(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(RequestError, match="symbolic links"):
        user_path(tmp_path / "round")
    (tmp_path / "shut").mkdir(mode=0)
    for name in ("shut", "shut/x"):
        with ordinary_user(), pytest.raises(RequestError, match="Permission denied"):
            user_path(tmp_path / name)


def test_files_are_found_at_any_depth_and_not_through_links(tmp_path: Path) -> None:
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1500):  # beyond what a recursion reaches
            os.mkdir("d")
            os.chdir("d")
        Path("deep").touch()
    finally:
        os.chdir(here)
    (tmp_path / "file").touch()
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "up").symlink_to(tmp_path)
    found = {path.name for path in files_below(tmp_path)}
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # which Python would remove by recursion, too
    assert found == {"file", "round", "up", "deep"}
    assert list(files_below(tmp_path / "absent")) == [tmp_path / "absent"]


def test_a_home_directory_is_put_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    assert user_path("a/~") == Path("a/~")


def test_problems_beyond_a_screen_are_counted() -> None:
    error = RequestError([f"problem {number} " + "x" * 100 for number in range(1000)])
    assert str(error).startswith("1000 problems:")
    assert len(str(error)) < WIDEST
    assert error.problems[-1] == f"... and {1000 - len(error.problems) + 1} more problems"
    assert RequestError("x" * 10**6).problems == ["x" * SCREEN + " ..."]
    assert RequestError(["one", "two"]).problems == ["one", "two"]
