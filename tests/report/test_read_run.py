from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from fake_run import WriteRun

from wishbone.errors import RequestError
from wishbone.report import run_directory
from wishbone.report.diagnosis import verdict
from wishbone.report.run_directory import read_run
from wishbone.report.sections import facts
from wishbone.report.views import next_steps


def with_metrics(run: Path, *lines: Any, end: str = "\n") -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (run / "metrics.jsonl").write_text("\n".join(texts) + end, encoding="utf-8")
    return run


def test_reads_every_metric_in_the_order_of_steps(write_run: WriteRun) -> None:
    record = read_run(write_run(steps=120, every=20))
    assert record.status == "done"
    assert record.problems == []
    assert [step for step, _ in record.metrics["loss"]] == list(range(1, 121))
    assert [step for step, _ in record.metrics["eval_loss"]] == [0, 20, 40, 60, 80, 100, 120]
    assert record.metrics["eval_loss"][0][1] == pytest.approx(math.log(2))


def test_a_line_cut_off_by_a_kill_is_left_out_and_named(write_run: WriteRun) -> None:
    run = with_metrics(write_run(), {"step": 1, "loss": 0.7}, '{"step": 2, "lo', end="")
    record = read_run(run)
    assert record.metrics["loss"] == [(1, 0.7)]
    assert len(record.problems) == 1
    assert "cut off" in record.problems[0]


def test_lines_that_are_no_metrics_are_counted(write_run: WriteRun) -> None:
    deep = "[" * 100_000
    run = with_metrics(write_run(), {"step": 1, "loss": 0.7}, "", "nonsense", "[1]", {"loss": 3}, {"step": "4"}, deep)
    record = read_run(run)
    assert record.metrics["loss"] == [(1, 0.7)]
    assert record.problems == ["metrics.jsonl: lines that are not JSON, or have no step, were skipped (5)"]


def test_what_is_no_number_is_skipped_and_what_is_not_finite_is_kept_as_such(write_run: WriteRun) -> None:
    run = with_metrics(
        write_run(),
        '{"step": 1, "loss": NaN, "a": true, "b": "text", "c": [1], "big": 1' + "0" * 400 + "}",
        '{"step": 2, "loss": null, "big": -1e999}',
        '{"step": 3, "loss": 0.5, "big": 1}',
    )
    metrics = read_run(run).metrics
    assert [math.isnan(value) for _, value in metrics["loss"]] == [True, True, False]
    assert [value for _, value in metrics["big"]] == [math.inf, -math.inf, 1.0]
    assert not {"a", "b", "c"} & metrics.keys()


def test_a_resumed_run_keeps_the_later_attempt(write_run: WriteRun) -> None:
    """Killed at step 40, resumed from a checkpoint at 20, now at 30; the evaluation at step 0 is repeated."""
    run = with_metrics(
        write_run(),
        {"step": 0, "eval_loss": 0.69},
        *({"step": step, "loss": 1.0} for step in (10, 20, 30, 40)),
        {"step": 40, "eval_loss": 0.9},
        {"step": 0, "eval_loss": 0.69},
        {"step": 30, "loss": 2.0},
    )
    metrics = read_run(run).metrics
    assert metrics["loss"] == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert metrics["eval_loss"] == [(0, 0.69)]


def test_a_run_without_its_end_is_not_finished(write_run: WriteRun) -> None:
    run = write_run(finished=False)
    assert read_run(run).status == "not finished"
    (run / "summary.json").unlink()
    assert read_run(run).status == "not finished"


def test_an_error_counts_until_the_run_is_started_again(write_run: WriteRun) -> None:
    run = write_run(finished=False)
    (run / "error.log").write_text("Traceback", encoding="utf-8")
    os.utime(run / "summary.json", (1000, 1000))
    os.utime(run / "error.log", (2000, 2000))
    assert read_run(run).status == "failed"
    os.utime(run / "summary.json", (3000, 3000))
    assert read_run(run).status == "not finished"


def test_damaged_files_leave_the_rest_readable(write_run: WriteRun) -> None:
    run = write_run()
    (run / "summary.json").write_text("[1, 2]", encoding="utf-8")
    (run / "environment.json").write_bytes(b"\xff\xfe{")
    (run / "answers.json").write_text('[1, {"before": "b"}]', encoding="utf-8")
    (run / "config.yaml").write_text("a: *b", encoding="utf-8")
    record = read_run(run)
    assert [problem.split()[0] for problem in record.problems] == ["summary.json", "config.yaml", "environment.json"]
    assert record.answers == [{"before": "b"}]
    assert len(record.metrics["loss"]) == 120


@pytest.mark.parametrize("absent", [True, False])
def test_what_is_not_a_run_directory_is_refused(tmp_path: Path, absent: bool) -> None:
    place = tmp_path / "nothing\x1b[31m" if absent else tmp_path / "file"
    if not absent:
        place.write_text("", encoding="utf-8")
    with pytest.raises(RequestError, match="does not exist" if absent else "is a file") as refusal:
        read_run(place)
    assert "\x1b" not in str(refusal.value)


def test_the_directory_of_runs_is_refused_with_what_is_missing_and_the_runs_in_it(
    tmp_path: Path, write_run: WriteRun
) -> None:
    run = write_run()
    with pytest.raises(RequestError) as refusal:
        read_run(tmp_path)
    for part in ("no config.yaml", "no environment.json", "no metrics.jsonl", str(run)):
        assert part in str(refusal.value)


def test_a_device_or_a_pipe_in_place_of_a_file_is_named_and_not_read(write_run: WriteRun) -> None:
    run = write_run()
    for name in ("metrics.jsonl", "error.log"):
        (run / name).unlink(missing_ok=True)
    (run / "metrics.jsonl").symlink_to("/dev/zero")
    os.mkfifo(run / "error.log")
    record = read_run(run)
    assert record.metrics == {}
    assert {"metrics.jsonl is not a file", "error.log is not a file"} <= set(record.problems)


def test_a_file_longer_than_any_run_writes_is_read_up_to_a_limit(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run()
    monkeypatch.setattr(run_directory, "MOST_BYTES", 2**20)
    (run / "error.log").write_text("x" * 2**21)
    record = read_run(run)
    assert any("error.log is longer than 1 MiB" in problem for problem in record.problems)
    assert record.error_log == "x" * 20_000


def test_a_history_that_goes_back_at_every_line_is_read_in_time(write_run: WriteRun) -> None:
    """Each step back drops what was logged beyond it; done naively, that is a look at every step for every line."""
    run = write_run()
    steps = [*range(20_000), *(20_000 - 0.001 * n for n in range(1, 20_001))]
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": step, "loss": 1}) + "\n" for step in steps))
    began = time.monotonic()
    points = read_run(run).metrics["loss"]
    assert time.monotonic() - began < 20
    assert [step for step, _ in points] == [*range(19_980), steps[-1]]


def test_a_run_that_failed_says_why_and_is_not_called_sound(write_run: WriteRun) -> None:
    run = write_run()
    summary = json.loads((run / "summary.json").read_text())
    why = "the loss of step 3 is not finite, so training stopped"
    (run / "summary.json").write_text(json.dumps(summary | {"status": "failed", "reason": why}))
    record = read_run(run)
    assert facts(record)["Reason"] == why
    assert verdict(record) is None
    (run / "summary.json").write_text(json.dumps(summary))
    assert "Reason" not in facts(read_run(run))


def test_a_run_on_images_counts_them_and_names_no_command_that_refuses_it(write_run: WriteRun) -> None:
    run = write_run()
    text = read_run(run)
    summary = run / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"images": 1234}))
    images = read_run(run)
    assert facts(images)["Pairs"] == f"{facts(text)['Pairs']}, 1,234 images"
    assert "--gguf" in str(next_steps(text)) and "--merged DIR" not in str(next_steps(text))
    assert "--merged DIR" in str(next_steps(images)) and "--gguf" not in str(next_steps(images))
