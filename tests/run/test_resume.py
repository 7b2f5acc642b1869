"""`wishbone train --resume`: the same run or none, from the newest sound checkpoint, and nothing for a finished one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny import tiny_model, write_tiny_run
from typer.testing import CliRunner, Result

from wishbone.cli import app

pytestmark = pytest.mark.slow

CONFIG = """\
model: {name: ./model}
data: {train: pairs.jsonl, max_length: 64, eval_fraction: 0.2}
adapter: {rank: 2, target_modules: [q_proj]}
training: {batch_size: 2, max_steps: 4, save_steps: 2, scheduler: constant, gradient_accumulation: 1}
output: {dir: run}
"""


def train(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", "tiny.yaml", *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, in the middle of an epoch of eight pairs when it ends, beside its model and pairs."""
    folder = tmp_path_factory.mktemp("finished")
    write_tiny_run(folder, CONFIG, pairs=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        outcome = train()
    assert outcome.exit_code == 0, outcome.output
    return folder


@pytest.fixture
def work(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to do something with."""
    folder = tmp_path / "work"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def learned(folder: Path) -> bytes:
    return (folder / "run" / "adapter" / "adapter_model.safetensors").read_bytes()


def metrics(folder: Path) -> list[tuple[int, float | None]]:
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss")) for line in lines]


@pytest.mark.parametrize("setting", ["training.max_steps=4", "training.max_steps=3", "training.logging_steps=2"])
def test_a_finished_run_is_told_and_not_touched(work: Path, setting: str) -> None:
    before = contents(work / "run")
    outcome = train("--resume", setting)
    assert outcome.exit_code == 0, outcome.output
    assert "this run is finished: 4 of 4 steps; to train on, set training.max_steps above 4" in outcome.stderr
    assert contents(work / "run") == before


def test_a_finished_run_without_checkpoints_is_finished(work: Path) -> None:
    shutil.rmtree(work / "run" / "checkpoints")
    outcome = train("--resume")
    assert outcome.exit_code == 0 and "this run is finished" in outcome.stderr
    outcome = train("--resume", "training.max_steps=6")
    assert outcome.exit_code == 2 and "there is no checkpoint" in outcome.stderr


def test_more_steps_continue_it(work: Path, finished: Path) -> None:
    outcome = train("--resume", "training.max_steps=6")
    assert outcome.exit_code == 0, outcome.output
    assert json.loads((work / "run" / "summary.json").read_text())["steps"] == 6
    outcome = train("output.dir=whole", "training.max_steps=6")
    assert outcome.exit_code == 0, outcome.output
    assert learned(work) == (work / "whole" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert learned(work) != learned(finished)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_killed_at_its_end_does_each_step_once(work: Path, finished: Path, damaged: bool) -> None:
    """Killed after the last checkpoint, and once with that one damaged: the older one is used, and a line says so."""
    shutil.rmtree(work / "run" / "adapter")
    summary = work / "run" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"status": "running"}))
    log = work / "run" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))  # without the last evaluation
    if damaged:
        (work / "run" / "checkpoints" / "checkpoint-4" / "scheduler.pt").write_bytes(b"x")
    outcome = train("--resume")
    assert outcome.exit_code == 0, outcome.output
    assert ("checkpoint-4 is damaged and was skipped: scheduler.pt has 1 bytes" in outcome.stderr) is damaged
    assert learned(work) == learned(finished)
    assert metrics(work) == metrics(finished)
    before, after = (json.loads((path / "run" / "summary.json").read_text()) for path in (finished, work))
    assert {name: after[name] for name in ("steps", "heldout_before")} == {
        name: before[name] for name in ("steps", "heldout_before")
    }


def test_a_run_killed_before_its_first_checkpoint_begins_anew_and_logs_each_step_once(
    work: Path, finished: Path
) -> None:
    shutil.rmtree(work / "run" / "adapter")
    shutil.rmtree(work / "run" / "checkpoints")
    summary = work / "run" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"status": "running"}))
    outcome = train("--resume")
    assert outcome.exit_code == 0, outcome.output
    assert "no checkpoint was written before, so the run begins with its first step" in outcome.stderr
    assert learned(work) == learned(finished)
    assert metrics(work) == metrics(finished)


def test_other_settings_are_refused_all_at_once_and_nothing_is_written(work: Path) -> None:
    before = contents(work / "run")
    changed = ["training.seed=7", "preference.beta=0.2", "adapter.rank=4", "data.eval_fraction=0.3"]
    outcome = train("--resume", "training.max_steps=8", *changed, "training.logging_steps=3")
    assert outcome.exit_code == 2
    for line in (
        "training.seed was 42 and is 7",
        "preference.beta was 0.1 and is 0.2",
        "adapter.rank was 2 and is 4",
        "data.eval_fraction was 0.2 and is 0.3",
    ):
        assert f"  - {line}\n" in outcome.stderr
    assert outcome.stderr.count("  - ") == len(changed)
    assert contents(work / "run") == before


@pytest.mark.parametrize("what", ["pairs", "order", "weights", "layers"])
def test_other_contents_under_the_same_names_are_refused(work: Path, what: str) -> None:
    before, setting = contents(work / "run"), "training.max_steps=8"
    rows = (work / "pairs.jsonl").read_text().splitlines(keepends=True)
    expected = "data: training pairs was 13 rows, SHA-256"
    match what:
        case "pairs":
            (work / "pairs.jsonl").write_text("".join(rows[:-1]) + rows[-1].replace("No idea.", "No."))
        case "order":
            (work / "pairs.jsonl").write_text("".join(reversed(rows)))
        case "weights":
            tiny_model("llama", seed=1, vocab_size=320).save_pretrained(work / "model")
            expected = "model: weights was SHA-256"
        case "layers":
            (work / "tiny.yaml").write_text(CONFIG.replace("q_proj", "v_proj"))
            expected = 'adapter: target_modules was ["q_proj"] and is ["v_proj"]'
    outcome = train("--resume", setting)
    assert outcome.exit_code == 2, outcome.output
    assert expected in outcome.stderr or "held out was 3 rows" in outcome.stderr
    assert contents(work / "run") == before
