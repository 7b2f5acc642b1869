"""The command line as a person meets it: what it prints where, and with which exit status."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from forked import forked_command
from typer.testing import CliRunner

from wishbone import __version__
from wishbone.cli import app
from wishbone.cli.doctor import OPTIONAL, PYTHON, REQUIRED

ROOT = Path(__file__).parents[2]
SMALLEST = "model: {name: org/model}\ndata: {train: org/pairs}\n"


def wishbone(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    child = forked_command(list(arguments), cwd or Path.cwd(), os.environ | environment)
    out, error = child.communicate()
    return subprocess.CompletedProcess(arguments, child.returncode, out, error)


def refused(*arguments: str, cwd: Path) -> str:
    """What standard error says of a request that is refused: exit status 2, nothing else printed, no traceback."""
    with contextlib.chdir(cwd):  # a program of its own takes half a second to begin
        outcome = CliRunner().invoke(app, list(arguments))
    assert outcome.exit_code == 2, outcome.stderr
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    return outcome.stderr


@pytest.mark.slow
def test_help_names_the_commands_and_is_quick():
    began = time.monotonic()
    program = [sys.executable, "-m", "wishbone", "--help"]
    outcome = subprocess.run(program, capture_output=True, text=True, check=False, timeout=300)
    assert time.monotonic() - began < 5
    assert outcome.returncode == 0
    assert {"train", "doctor"} <= set(outcome.stdout.split())
    assert wishbone("train", "--help").stdout.count("--dry-run") >= 1


def test_version():
    assert wishbone("--version").stdout == f"wishbone {__version__}\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_is_not_taken_ends_a_command_in_one_line():
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "wishbone", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("wishbone: standard output takes no more (No space left on device)")
    assert len(ended.stderr.splitlines()) == 1
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "wishbone", "--version"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["train", "--nonsense"], ["doctor", "extra"]])
def test_wrong_usage_is_a_wrong_request(arguments: list[str]):
    outcome = wishbone(*arguments)
    assert outcome.returncode == 2
    assert "Traceback" not in outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("data: {max_length: 0, train: x}", [], ["data.max_length (line 2): 0 is not accepted. It takes a whole"]),
        ("preference: {beta: 0}", [], ["preference.beta (line 3): 0 is not accepted. It takes a number above 0"]),
        ("preference: {loss: sigmoind}", [], ["'sigmoind' is not accepted. Did you mean sigmoid?"]),
        (
            "preference: {bta: 1}\ntraining: {epochs: many}",
            [],
            [
                "2 problems",
                "1. preference.bta (line 3): no such key; did you mean beta?",
                "2. training.epochs (line 4): ",
            ],
        ),
        (
            "preference: {loss: exo_pair, loss_weights: [1, 2]}",
            [],
            ["2 problems", "has 2 weights", "label_smoothing 0"],
        ),
        ("", ["preference.beta"], ["override 'preference.beta': it has no value; write preference.beta=VALUE"]),
        ("", ["preference.bta=1"], ["preference.bta (override 'preference.bta=1'): no such key; did you mean beta?"]),
        ("", ["data.train=./none.jsonl"], ["'./none.jsonl' does not exist"]),
        ("", ["--resume"], ["there is no run 'c' in"]),
    ],
)
def test_a_wrong_configuration_is_explained(tmp_path: Path, text: str, overrides: list[str], expected: list[str]):
    head = SMALLEST if not text.startswith("data") else SMALLEST.splitlines()[0] + "\n"
    (tmp_path / "c.yaml").write_text(head + text)
    message = refused("train", "c.yaml", *overrides, cwd=tmp_path)
    assert message.startswith("wishbone: ")
    assert [part for part in expected if part not in message] == []
    assert not (tmp_path / "runs").exists()


def test_into_a_pipe_each_problem_is_one_line(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("preference: {loss: nonsense}\nadapter: {rank: 0}\n")
    outcome = wishbone("train", "c.yaml", cwd=tmp_path)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    lines = outcome.stderr.splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) > 200


@pytest.mark.slow
def test_names_from_outside_are_text(tmp_path: Path):
    (tmp_path / "[red]c[blink].yaml").write_text("'[bold]x': 1\n\"\\e[31m\": 2\n")
    message = refused("train", "[red]c[blink].yml", cwd=tmp_path)
    assert "'[red]c[blink].yml' does not exist; did you mean '[red]c[blink].yaml'?" in message
    message = refused("train", "[red]c[blink].yaml", cwd=tmp_path)
    assert "'[bold]x' (line 1): no such key" in message
    assert r"'\x1b[31m' (line 2): no such key" in message
    assert "\x1b" not in message


def test_a_directory_that_holds_a_run_is_not_written_into(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").touch()
    (tmp_path / "c.yaml").write_text(SMALLEST)
    assert "already holds a run; continue it with --resume" in refused(
        "train", "c.yaml", "output.dir=mine", cwd=tmp_path
    )


def test_cautions_come_before_the_run(tmp_path: Path):
    (tmp_path / "c.yaml").write_text(SMALLEST)
    message = refused("train", "c.yaml", "training.learning_rate=1e-4", "output.dir=.", "--resume", cwd=tmp_path)
    assert message.startswith("note: training.learning_rate 0.0001 is a rate for supervised fine-tuning")


# doctor


@pytest.mark.slow
def test_doctor_says_what_is_there():
    outcome = wishbone("doctor", COLUMNS="60")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stderr == ""
    assert "Ready to train." in outcome.stdout
    lines = [line.rstrip() for line in outcome.stdout.splitlines()]
    assert max(map(len, lines)) <= 60
    for name in ("Python", "Processor", "Memory", *REQUIRED, *OPTIONAL, "embedded"):
        assert any(line.startswith(f"  {name} ") for line in lines), name


@pytest.mark.slow
def test_doctor_prints_json_for_programs():
    program = [sys.executable, "-m", "wishbone", "doctor", "--json", "--online"]
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}  # counts when libraries are imported
    outcome = subprocess.run(program, capture_output=True, text=True, env=environment, check=False, timeout=300)
    report = json.loads(outcome.stdout)
    assert outcome.stderr == ""
    assert report["fit"] is True
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["torch"]["verdict"] == "ok"
    assert rows["Memory"]["data"]["total"] > rows["Memory"]["data"]["available"] > 0
    assert rows["Processor"]["data"]["cores"] >= 1
    assert (rows["hub"]["found"], rows["hub"]["verdict"]) == ("no answer", "absent")
    assert rows["hub"]["note"].startswith("http://127.0.0.1:9: ")


def test_doctor_finds_missing_and_old_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = tmp_path / "gguf-0.9.1.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Name: gguf\nVersion: 0.9.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", inspect.unwrap(importlib.metadata.version))  # see conftest.py
    monkeypatch.setitem(REQUIRED, "no-such-package-of-wishbone", "1.0")
    outcome = CliRunner().invoke(app, ["doctor", "--json"])
    rows = {row["name"]: row for row in json.loads(outcome.stdout)["rows"]}
    assert "hub" not in rows  # it is asked with --online only
    assert (rows["gguf"]["found"], rows["gguf"]["verdict"]) == ("0.9.1", "too old")
    assert (rows["no-such-package-of-wishbone"]["found"], rows["no-such-package-of-wishbone"]["verdict"]) == (
        "",
        "missing",
    )
    assert outcome.exit_code == 1


@pytest.mark.slow
def test_doctor_counts_the_parts_of_a_model_that_would_run_fused(tmp_path: Path):
    """Its weights are not read: there are none. In this process, which has transformers already."""
    config = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
    config |= {"model_type": "apertus", "num_hidden_layers": 3, "vocab_size": 131072}
    (tmp_path / "config.json").write_text(json.dumps(config))
    outcome = CliRunner().invoke(app, ["doctor", "--json", "--model", str(tmp_path)])
    rows = {row["name"]: row for row in json.loads(outcome.stdout)["rows"] if "fused on a CUDA GPU" in row["group"]}
    assert outcome.exit_code == 0
    assert (rows["rotary embedding"]["found"], rows["rotary embedding"]["verdict"]) == ("3 of 3", "ok")
    assert rows["norm"]["found"] == "13 of 13"
    assert (rows["MLP"]["found"], rows["MLP"]["verdict"]) == ("0 of 3", "slower")
    assert rows["MLP"]["note"] == "ApertusMLP has no gate (3)"
    assert rows["MLP"]["data"]["why_not"] == [{"reason": "ApertusMLP has no gate", "layers": 3}]


@pytest.mark.slow
def test_doctor_says_what_is_wrong_with_a_model(tmp_path: Path):
    outcome = CliRunner().invoke(app, ["doctor", "--json", "--model", str(tmp_path / "nothing")])
    row = next(row for row in json.loads(outcome.stdout)["rows"] if row["name"] == "model")
    assert (outcome.exit_code, row["verdict"]) == (1, "missing")
    assert "does not exist" in row["note"]


def test_doctor_asks_for_what_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={PYTHON}"
    gpu = dict(requirement.split(">=") for requirement in project["optional-dependencies"]["gpu"])
    required = (requirement.split(",")[0].split(">=") for requirement in project["dependencies"])
    assert dict(required) == REQUIRED
    assert gpu == {name: minimum for name, (minimum, _) in OPTIONAL.items() if minimum}


@pytest.mark.slow
def test_shells_complete_commands():
    words = {"_TYPER_COMPLETE_ARGS": "wishbone ex", "COMP_WORDS": "wishbone ex", "COMP_CWORD": "1"}
    outcome = wishbone(_WISHBONE_COMPLETE="complete_bash", **words)
    assert outcome.stdout.split() == ["export"]
    assert "complete -o default" in wishbone(_WISHBONE_COMPLETE="source_bash").stdout
