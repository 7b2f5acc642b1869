"""Texts for trackers: what goes to each, once, and that a tracker which takes none loses nothing else."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import types
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wishbone.config import trackers
from wishbone.config.load import parse_config
from wishbone.config.trackers import chosen_trackers
from wishbone.report.answers import Answer
from wishbone.run import trackers as trackers_of_a_run
from wishbone.run.tracker_texts import TrackerTexts
from wishbone.run.trackers import Tracker, open_trackers, tracked_name

PAIRS = [{"prompt": ["Why", "?"], "chosen": ["So", "."], "rejected": ["No", "."]}]
NOTE = {"kind": "note", "step": 2, "text": "a note"}
ANSWERS = {"kind": "answers", "step": 3, "prompts": ["p"], "answers": ["<b>a\n# b"]}


class Inner(TrainerCallback):
    """A tracker's callback: with TensorBoard's writer, which counts, or failing at one of its events."""

    def __init__(self, failing: str = "", error: Exception | None = None) -> None:
        self.tb_writer = self
        self.texts: list[tuple[str, str, int]] = []
        self.seen: list[str] = []
        self.failing, self.error = failing, error

    def add_text(self, name: str, text: str, step: int) -> None:
        self.texts.append((name, text, step))

    def flush(self) -> None:
        pass

    def _see(self, event: str) -> None:
        print("what a tracker prints")
        self.seen.append(event)
        if event == self.failing and self.error is not None:
            raise self.error

    def on_log(self, *_: Any, **__: Any) -> None:
        self._see("log")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._see("end")


def log(callback: TrainerCallback, tmp_path: Path, step: int) -> None:
    state = TrainerState(global_step=step, is_world_process_zero=True)
    callback.on_log(TrainingArguments(str(tmp_path), report_to="none", use_cpu=True), state, TrainerControl())


def test_each_text_goes_out_once_and_is_no_markup(tmp_path: Path):
    board, rows = Inner(), [NOTE]
    texts = TrackerTexts([Tracker("tensorboard", lambda: board)], lambda: rows, PAIRS)
    log(texts, tmp_path, 2)
    rows.append(ANSWERS)
    log(texts, tmp_path, 3)
    log(texts, tmp_path, 4)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "p"}]
    texts.tell_answers([Answer(asked, "b", "a", None)], 4)
    assert [(name, step) for name, _, step in board.texts] == [
        ("pairs", 2), ("guard", 2), ("answers", 3), ("answers before and after", 4)
    ]  # fmt: skip
    assert "    Why?" in board.texts[0][1]
    assert "    <b>a\n    # b" in board.texts[2][1]  # a block of code, in which nothing is markup
    assert "    system: Be brief.\n    user: p" in board.texts[3][1]


def test_a_run_that_goes_on_hands_over_nothing_twice(tmp_path: Path):
    board, rows = Inner(), [NOTE]
    texts = TrackerTexts([Tracker("tensorboard", lambda: board)], lambda: rows, PAIRS)
    texts.on_train_begin(None, TrainerState(global_step=2), TrainerControl())  # type: ignore[arg-type]
    rows.append(ANSWERS)
    log(texts, tmp_path, 3)
    assert [name for name, _, _ in board.texts] == ["answers"]


def test_tables_stand_beside_the_metrics_of_their_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    logged: list[Any] = []
    module: Any = types.ModuleType("trackio")
    module.Table = lambda columns, data: (columns, data)
    module.log = logged.append
    monkeypatch.setitem(sys.modules, "trackio", module)
    log(TrackerTexts([Tracker("trackio", Inner)], lambda: [NOTE, ANSWERS], PAIRS), tmp_path, 3)
    assert logged[0] == {"pairs": (["prompt", "chosen", "rejected"], [["Why?", "So.", "No."]]), "train/global_step": 3}
    assert [entry["train/global_step"] for entry in logged] == [3, 2, 3]


@pytest.mark.parametrize("failing", ["make", "log", "end", "table"])
def test_a_tracker_that_fails_is_told_of_once_and_stops_nothing(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    class OfAnother(Exception):
        """Not an error of Python."""

    def make() -> Inner:
        if failing == "make":
            raise OfAnother("no\naccount")
        return Inner(failing, OfAnother("no\naccount"))

    module: Any = types.ModuleType("wandb")
    module.finish = lambda: None  # and it takes no tables
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracker = Tracker("wandb", make)
    texts = TrackerTexts([tracker], list, PAIRS if failing == "table" else [])
    with caplog.at_level("WARNING", logger="wishbone"):
        for step in (1, 2):
            log(tracker, tmp_path, step)
            log(texts, tmp_path, step)
        tracker.end()
        tracker.end()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "the run continues without it" in line and "\n" not in line
    assert "OfAnother: no account" in line or failing == "table"


def test_a_tracker_ends_with_the_run_and_leaves_standard_output_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    inner = Inner()
    monkeypatch.setattr(trackers_of_a_run, "get_reporting_integration_callbacks", lambda names: [lambda: inner])
    with open_trackers(["mlflow"], tmp_path) as (tracker,):
        log(tracker, tmp_path, 1)
        tracker.on_train_end(None, TrainerState(), TrainerControl())
        log(tracker, tmp_path, 2)
    assert inner.seen == ["log", "log", "end"]
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("what a tracker prints") == 3


def test_names_of_runs_tell_them_apart():
    assert re.fullmatch(r"mine-\d{8}-\d{6}", tracked_name(Path("runs/mine")))
    assert tracked_name(Path("runs/mine-20260101-120000-2")) == "mine-20260101-120000-2"


def test_what_is_installed_is_on_by_default(monkeypatch: pytest.MonkeyPatch):
    there: set[str] = set()
    monkeypatch.setattr(trackers, "is_installed", lambda name: name in there)
    assert chosen_trackers("auto") == []
    there.add("trackio")
    assert chosen_trackers("auto") == ["trackio"]
    there.add("tensorboardX")
    assert chosen_trackers("auto") == ["tensorboard"]
    assert chosen_trackers(["wandb"]) == ["wandb"] and chosen_trackers([]) == []


def test_a_configuration_names_trackers():
    text = "model: {name: m}\ndata: {train: d}\noutput: {report_to: %s}\n"
    given = {"auto": "auto", "wandb": ["wandb"], "[]": [], "[trackio, wandb]": ["trackio", "wandb"]}
    assert {value: parse_config(text % value).output.report_to for value in given} == given
    assert parse_config("model: {name: m}\ndata: {train: d}\n").output.report_to == "auto"


@pytest.mark.long
@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_a_run_is_tracked_to_its_last_answers(tracker: str, tmp_path: Path):
    pytest.importorskip(tracker, reason=f"{tracker} is not installed here")
    from tiny import write_tiny_run

    config = "model: {name: ./model}\ndata: {train: pairs.jsonl, max_length: 64, eval_fraction: 0.25}\n"
    config += "training: {max_steps: 2, guard_steps: 1, batch_size: 2, gradient_accumulation: 1, logging_steps: 1}\n"
    write_tiny_run(tmp_path, config + f"output: {{dir: out, report_to: [{tracker}]}}\n", pairs=8)
    settings = {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "wishbone", "train", "tiny.yaml", "--json"]  # both read settings at their import
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "done"
    if tracker == "wandb":
        tables = [path.name for path in tmp_path.glob("wandb/offline-*/files/media/table/*")]
        assert any(name.startswith("answers before and after") for name in tables), tables
        return
    with closing(sqlite3.connect(tmp_path / "trackio" / "wishbone.db")) as stored:
        rows = stored.execute("select run_name, metrics from metrics order by id").fetchall()
    assert {name for name, _ in rows} == {result["summary"]["tracked_as"]}
    last = str(rows[-1][1])
    assert "answers before and after" in last and "trackio.table" in last
    assert any("train/loss" in str(values) for _, values in rows)
    assert "trackio show --project wishbone" in done.stderr and "* Trackio" not in done.stderr


@pytest.mark.slow
def test_a_run_writes_tensorboard_into_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed here")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tiny import write_tiny_run
    from typer.testing import CliRunner

    from wishbone.cli import app

    monkeypatch.chdir(tmp_path)
    config = "model: {name: ./model}\ndata: {train: pairs.jsonl, max_length: 64, eval_fraction: 0.25}\n"
    config += "training: {max_steps: 3, guard_steps: 1, batch_size: 2, gradient_accumulation: 1}\noutput: {dir: out}\n"
    write_tiny_run(tmp_path, config, pairs=8)
    outcome = CliRunner().invoke(app, ["train", "tiny.yaml"])
    assert outcome.exit_code == 0, outcome.stderr
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    names = set(events.Tags()["tensors"])
    assert {"pairs/text_summary", "answers/text_summary", "answers before and after/text_summary"} <= names
    assert "train/loss" in events.Tags()["scalars"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "done"
