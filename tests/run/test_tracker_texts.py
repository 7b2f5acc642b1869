"""Texts for trackers: what goes to each, once, and that a tracker which takes none loses nothing else."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from wishbone.config import trackers
from wishbone.config.load import parse_config
from wishbone.config.trackers import chosen_trackers
from wishbone.run.tracker_texts import TrackerTexts

PAIRS = [{"prompt": ["Why", "?"], "chosen": ["So", "."], "rejected": ["No", "."]}]
NOTE = {"kind": "note", "step": 2, "text": "a note"}
ANSWERS = {"kind": "answers", "step": 3, "prompts": ["p"], "answers": ["<b>a\n# b"]}


class Board:
    """What TensorBoard's callback has: a writer."""

    def __init__(self) -> None:
        self.tb_writer = self
        self.texts: list[tuple[str, str, int]] = []

    def add_text(self, name: str, text: str, step: int) -> None:
        self.texts.append((name, text, step))

    def flush(self) -> None:
        pass


def log(texts: TrackerTexts, tmp_path: Path, step: int) -> None:
    state = TrainerState(global_step=step, is_world_process_zero=True)
    texts.on_log(TrainingArguments(str(tmp_path), report_to="none", use_cpu=True), state, TrainerControl())


def test_each_text_goes_out_once_and_is_no_markup(tmp_path: Path):
    board, rows = Board(), [NOTE]
    texts = TrackerTexts(["tensorboard"], board, lambda: rows, PAIRS)  # type: ignore[arg-type]
    log(texts, tmp_path, 2)
    rows.append(ANSWERS)
    log(texts, tmp_path, 3)
    log(texts, tmp_path, 4)
    texts.tell_answers([{"prompt": "p", "before": "b", "after": "a", "chosen": None}], 4)
    assert [(name, step) for name, _, step in board.texts] == [
        ("pairs", 2), ("guard", 2), ("answers", 3), ("answers before and after", 4)
    ]  # fmt: skip
    assert "    Why?" in board.texts[0][1]
    assert "    <b>a\n    # b" in board.texts[2][1]  # a block of code, in which nothing is markup


def test_tables_go_to_trackio_and_one_that_fails_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    logged: list[Any] = []
    module: Any = types.ModuleType("trackio")
    module.Table = lambda columns, data: (columns, data)
    module.log = lambda values, step: logged.append((values, step))
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # takes no tables
    texts = TrackerTexts(["trackio", "wandb"], None, lambda: [NOTE, ANSWERS], PAIRS)
    log(texts, tmp_path, 3)
    assert logged[0] == ({"pairs": (["prompt", "chosen", "rejected"], [["Why?", "So.", "No."]])}, 3)
    assert [step for _, step in logged] == [3, 2, 3]


def test_what_is_installed_is_on_by_default(monkeypatch: pytest.MonkeyPatch):
    there: set[str] = set()
    monkeypatch.setattr(trackers, "find_spec", lambda name: name in there or None)
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
