"""`wishbone sweep`: the grid, its refusals, and a sweep of two runs that is stopped and goes on."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer
from typer.testing import CliRunner, Result

from wishbone.cli import app
from wishbone.cli.grid import grid, split_values
from wishbone.cli.sweep import passed_on_to
from wishbone.config.load import load_config
from wishbone.config.run_directory import claimed_run_directory
from wishbone.errors import RequestError

CONFIG = """\
model: {name: ./model}
data: {train: pairs.jsonl, max_length: 64, eval_fraction: 0.3}
adapter: {rank: 2}
training: {batch_size: 2, gradient_accumulation: 1, max_steps: 1}
output: {answers: 0, report_to: []}
"""


def test_every_combination_has_a_name_of_its_own():
    found = grid(["training.learning_rate=1e-6,5e-6", "preference.loss=sigmoid,[sigmoid, sft]", "training.seed=3"])
    assert [one.name for one in found] == [
        "learning_rate-1e-6_loss-sigmoid",
        "learning_rate-1e-6_loss-sigmoid-sft",
        "learning_rate-5e-6_loss-sigmoid",
        "learning_rate-5e-6_loss-sigmoid-sft",
    ]
    assert found[1].overrides == ["training.learning_rate=1e-6", "preference.loss=[sigmoid, sft]", "training.seed=3"]
    assert found[1].varied == {"learning_rate": "1e-6", "loss": "[sigmoid, sft]"}


def test_commas_in_brackets_and_quotes_divide_nothing():
    assert split_values("[a,b],{c: 1,d: 2},'x,y',z") == ["[a,b]", "{c: 1,d: 2}", "'x,y'", "z"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["beta"], "write it as section.key=value,value"),
        (["preference.beta="], "write it as section.key=value,value"),
        (["preference.beta=0.1", "preference.beta=0.2"], "stands twice"),
        (["output.dir=a,b"], "is the sweep's own"),
        (["preference.beta=0.1,0.1"], "the same values stand twice"),
        ([f"training.seed={','.join(map(str, range(600)))}"], "600 runs are more than 500"),
    ],
)
def test_what_is_no_grid_is_refused(settings: list[str], said: str):
    with pytest.raises(RequestError, match=said):
        grid(settings)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(10)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def sweep(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", "tiny.yaml", *arguments])


def test_wrong_values_are_refused_before_any_run(workplace: Path):
    outcome = sweep("preference.beta=0.1,-1", "--output", "s")
    assert outcome.exit_code == 2 and "preference.beta" in outcome.stderr
    assert not (workplace / "s").exists()
    listed = sweep("preference.beta=0.1,0.2", "--output", "s", "--dry-run")
    assert listed.exit_code == 0 and "2. preference.beta=0.2" in listed.stderr
    data = json.loads(sweep("preference.beta=0.1,0.2", "--output", "s", "--dry-run", "--json").stdout)
    assert [one["overrides"] for one in data] == [["preference.beta=0.1"], ["preference.beta=0.2"]]


@pytest.mark.slow
def test_a_run_that_another_sweep_has_begun_is_left_alone(workplace: Path):
    directory = workplace / "s" / "run"  # one value varies nothing
    config = load_config(workplace / "tiny.yaml", [f"output.dir={directory}"])
    with claimed_run_directory(config):
        (directory / "config.yaml").write_text(CONFIG)  # as a run has it before its first checkpoint
        outcome = sweep("preference.beta=0.1", "--output", "s")
        assert outcome.exit_code == 2
        assert sorted(path.name for path in directory.iterdir()) == [".lock", "config.yaml"]


def test_a_signal_goes_on_to_the_run_and_one_that_is_ignored_does_not():
    program = (
        "import signal, time; signal.signal(signal.SIGHUP, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child, passed_on_to(child):
            assert child.stdout is not None and child.stdout.readline() == b"up\n"
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            assert child.wait(30) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, ignored)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.long
def test_two_runs_share_one_store_and_are_not_run_twice(workplace: Path):
    outcome = sweep("preference.beta=0.1,0.2", "--output", "s")
    assert outcome.exit_code == 0, outcome.stderr
    rows = json.loads((workplace / "s" / "sweep.json").read_text())
    assert [(row["settings"]["beta"], row["status"], row["heldout"]) for row in rows] == [
        ("0.1", "done", True),
        ("0.2", "done", True),
    ]
    summaries = [json.loads((Path(row["run"]) / "summary.json").read_text()) for row in rows]
    assert summaries[0]["reference_pairs"]["computed"] > 0
    assert summaries[1]["reference_pairs"]["computed"] == 0 < summaries[1]["reference_pairs"]["reused"]
    with sqlite3.connect(workplace / "s" / "references.sqlite") as store:
        assert store.execute("select count(*) from sqlite_master").fetchone()[0] > 0
    again = sweep("preference.beta=0.1,0.2", "--output", "s", "--json")
    assert again.exit_code == 0 and again.stderr.count("done before") == 2
    (workplace / "tiny.yaml").write_text(CONFIG.replace("max_steps: 1", "max_steps: 1, learning_rate: 1.0e-5"))
    other = sweep("preference.beta=0.1,0.2", "--output", "s")
    assert other.exit_code == 2 and other.stderr.count("is done, with training.learning_rate: 5e-06 instead of") == 2
    assert json.loads(again.stdout) == rows
