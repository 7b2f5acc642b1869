"""metrics.jsonl: each step once, whatever became of the file between two parts of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from wishbone.errors import RunError
from wishbone.run.run_files import MetricsFile

LINES = [{"step": step, "seconds": float(step), **value} for step in (1, 2, 3) for value in ({"loss": 0.5}, {"lr": 1})]


def resumed_at(path: Path, step: int) -> list[tuple[int, int]]:
    """Steps and lengths of the lines after a run went on from a checkpoint after `step`, and logged once."""
    history: Any = [{"step": line["step"]} for line in LINES if line["step"] <= step]
    state = TrainerState(global_step=step, log_history=history, is_world_process_zero=True)
    metrics, nothing = MetricsFile(path), SimpleNamespace()
    metrics.on_train_begin(nothing, state, TrainerControl())  # type: ignore[arg-type]
    state.global_step += 1
    metrics.on_log(nothing, state, TrainerControl(), logs={"loss": 0.25})  # type: ignore[arg-type]
    return [
        (line["step"], len(line.keys() - {"memory_gib"})) for line in map(json.loads, path.read_text().splitlines())
    ]


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"step": 3, "se', b"\0" * 5000, b"\xff\xfe\n", b"[1]\n", b'{"step": "x"}\n', b"\n", b"[" * 90_000 + b"\n",
     b'{"step": 0, "eval_loss": 1}\n', b'{"step": 1' + b"0" * 5000 + b"}\n"],
)  # fmt: skip
@pytest.mark.parametrize("first", [False, True])
def test_a_damaged_line_goes_and_the_others_stay(
    tmp_path: Path, damage: bytes, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """At the beginning of the file a damaged line costs the one that it runs into; everywhere it costs no error."""
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    path.write_bytes(damage + whole if first else whole + damage)
    found = resumed_at(path, 2)
    expected = [(1, 3), (1, 3), (2, 3), (2, 3), (3, 3)]
    if first and damage and not damage.endswith(b"\n"):
        expected = expected[1:]
    if first and b"eval_loss" in damage:
        expected = [(0, 2), *expected]
    assert found == expected
    told = any("could not be read" in line.message for line in caplog.records)
    assert told is (bool(damage) and b"eval_loss" not in damage)


def test_a_run_whose_directory_is_gone_ends_before_a_checkpoint_makes_a_part_of_it_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert resumed_at(run / "metrics.jsonl", 0) == [(1, 3)]
    run.rename(tmp_path / "moved")
    with pytest.raises(RunError, match=r"was removed or renamed while the run wrote into it; rename it back"):
        resumed_at(run / "metrics.jsonl", 0)
    assert not run.exists()


def test_what_cannot_be_replaced_stays_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (tmp_path / ".metrics.jsonl.partial").mkdir()  # what stands in the way of a file that is replaced
    assert resumed_at(path, 2)[-1] == (3, 3)
    assert "lines of steps that come again stay in it" in caplog.text
