"""What a watched step notes: its rows, the host's part of its time, and clocks of the seconds in which it ran."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.harness.step_watch import Clocks, StepWatch
from benchmarks.harness.worker import Progress


def test_a_step_notes_its_rows_and_until_when_the_host_launched(tmp_path: Path):
    watch = StepWatch(Progress(tmp_path / "progress.jsonl"))
    policy = Namespace(collate=lambda pairs, execution: len(pairs))
    step = Namespace(policy=policy, backward=lambda pairs: [policy.collate(pairs, None), time.sleep(0.02)])
    watch.attach(Namespace(preference_step=step))
    watch.on_train_begin(None, None, None)
    watch.on_step_begin()
    assert step.backward([Namespace(row_tokens=3), Namespace(row_tokens=4)])[0] == 2
    time.sleep(0.02)
    watch.on_step_end()
    watch.on_step_begin()
    watch.on_step_end()
    first, second = watch.steps
    assert first["rows"] == [7] and 0.02 <= first["launched"] <= first["seconds"] - 0.02
    assert first["ms_a_token"] == pytest.approx(1e3 * first["seconds"] / 7, rel=1e-2)
    assert second["rows"] == [] and second["launched"] == 0 and "ms_a_token" not in second
    written = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["partial"]["steps"] for line in written] == [[first], [first, second]]


def test_a_trainer_without_our_step_is_watched_too(tmp_path: Path):
    watch = StepWatch(Progress(tmp_path / "progress.jsonl"))
    watch.attach(Namespace())
    watch.on_step_begin()
    watch.on_step_end()
    assert watch.steps[0]["seconds"] >= 0


def test_clocks_are_those_of_the_seconds_asked_for():
    lines = "1980, 300.5, 40, 0x0\\nnvidia-smi says\\n[N/A], 1, 1, 0x0\\n1500, 690.0, 61, 0x4\\n"
    clocks = Clocks([sys.executable, "-c", f"import time; print('{lines}', end='', flush=True); time.sleep(60)"])
    begun = time.perf_counter()
    while len(clocks._samples) < 2:
        assert time.perf_counter() < begun + 20
        time.sleep(0.01)
    assert clocks.between(begun, time.perf_counter()) == {
        "least_mhz": 1500.0,
        "mean_mhz": 1740,
        "mean_watts": 495,
        "most_watts": 690.0,
        "most_celsius": 61.0,
        "reasons": ["0x0", "0x4"],
    }
    assert clocks.between(time.perf_counter(), time.perf_counter()) == {}
    clocks.end()
