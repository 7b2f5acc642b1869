"""The command itself: one tiny row, measured by a process of its own, and what becomes of one that fails."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_what_there_is_is_listed():
    answer = command("--help")
    assert answer.returncode == 0
    commands = {path.stem.replace("_", "-") for path in (ROOT / "benchmarks" / "commands").glob("[a-z]*.py")}
    assert set(re.findall(r"^  ([\w-]+) +\w", answer.stdout, re.MULTILINE)) == commands
    assert {"throughput", "suite", "cpu", "tokenize-pairs"} <= commands


@pytest.mark.parametrize("name", ["adapter-rounding", "cpu", "document", "plan-cpu", "precision", "targets"])
def test_every_command_explains_itself(name: str):
    answer = command(name, "--help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"usage: python -m benchmarks {name} ")


def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path):
    out = tmp_path / "out.json"
    for wrong in (["--systems", "trl-bf17"], ["--systems", "trl-f32", "--cases", "tiny:0"]):
        answer = command("throughput", "--size", "tiny", "--out", str(out), *wrong)
        assert answer.returncode == 2
        assert "trl-bf17" in answer.stderr or "tiny:0" in answer.stderr
    assert not out.exists()
    assert command("no-such-benchmark").returncode == 1


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("suite")
    arguments = ["--size", "tiny", "--cases", "tiny:2x2", "--systems", "wishbone-f32", "--warm-up", "1", "--timed", "2"]
    answer = command("throughput", *arguments, "--out", str(folder / "rows.json"), "--logs", str(folder / "logs"))
    logs = "".join(path.read_text() for path in (folder / "logs").glob("*.log"))
    assert answer.returncode == 0, answer.stderr + logs
    found: dict[str, Any] = json.loads((folder / "rows.json").read_text())
    found["stdout"], found["path"] = answer.stdout, folder / "rows.json"
    return found


@pytest.mark.long
@pytest.mark.slow
def test_a_row_has_what_was_measured(report: dict[str, Any]):
    (row,) = report["results"]
    assert {key: row[key] for key in ("kind", "size", "system", "case", "status")} == {
        "kind": "throughput",
        "size": "tiny",
        "system": "wishbone-f32",
        "case": "tiny:2x2",
        "status": "ok",
    }
    assert len(row["step_seconds"]) == len(row["losses"]) == 3
    assert row["pairs_per_s"] == pytest.approx(8 / sum(row["step_seconds"][1:]), rel=2e-2)  # seconds are rounded
    assert 0 < row["pairs_per_s_with_data"] <= row["pairs_per_s"]
    assert row["losses"][0] == pytest.approx(0.693147, abs=1e-6)
    assert row["peak_gib"] > 0.1
    assert row["first_step_seconds"] >= row["step_seconds"][0]
    assert row["compiled_later"] == {"graphs": 0, "kernels": 0}
    assert row["trained_parameters"] == 2 * 16 * (4 * 64 + 2 * (64 + 32) + 3 * (64 + 128))
    layers = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64)
    assert row["frozen_elements"]["float32"] == pytest.approx(layers + 2 * 2000 * 64 + 64, abs=64)
    tokens = row["tokens_per_pair"]
    assert tokens["scored"] < tokens["unique"] < tokens["two_sequences"]
    assert row["not_on_fast_path_because"] is None
    assert row["reference"] == {"reused": 0, "computed": 12}
    assert row["versions"].keys() >= {"torch", "transformers", "trl", "peft"}
    assert row["options"] == {"family": "wishbone", "weights": "f32"}
    assert "wishbone-f32" in report["stdout"]


@pytest.mark.long
@pytest.mark.slow
def test_a_call_says_where_when_and_how(report: dict[str, Any]):
    (call,) = report["calls"]
    assert call["command"].startswith("python -m benchmarks throughput --size tiny --cases tiny:2x2 ")
    assert call["command"].endswith("--out rows.json --logs logs")
    assert call["date"].endswith("UTC")
    assert call["hardware"]["cores"] >= 1


@pytest.mark.long
@pytest.mark.slow
def test_what_is_there_is_not_measured_again_and_a_missing_library_is_a_row(report: dict[str, Any], tmp_path: Path):
    out = tmp_path / "rows.json"
    out.write_text(report["path"].read_text())
    (tmp_path / "models" / "tiny").mkdir(parents=True)  # a model there is is not written again
    arguments = ["--size", "tiny", "--cases", "tiny:2x2", "--systems", "wishbone-f32,unsloth-bf16"]
    answer = command("throughput", *arguments, "--out", str(out), "--model-dir", str(tmp_path / "models"))
    assert answer.returncode == 0, answer.stderr
    first, second = json.loads(out.read_text())["results"]
    assert first == report["results"][0]
    assert second["status"] == "failed"
    assert "unsloth" in second["reason"]
    assert second["phase"] == "importing libraries"
    assert "unsloth-bf16" in answer.stdout


def runs(process: int) -> bool:
    """Whether a process has not ended. One that has ended stays a zombie where process 1 reaps no children."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_call_that_is_ended_ends_its_processes(tmp_path: Path):
    python = tmp_path / "python"
    # it says which process it is after the line that lets it begin, so its parent has seen it start
    python.write_text(f"#!/bin/sh\nread begin\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    python.chmod(0o755)
    arguments = ["throughput", "--size", "tiny", "--systems", "trl-f32", "--python", f"trl={python}"]
    call = subprocess.Popen([sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    assert runs(child)
    call.terminate()
    assert call.wait(20) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 20  # of the 60 s that it would sleep
    while runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
