"""Signals, outputs that fail and a second process: real runs of `wishbone train` on a model of two layers.

Each run costs seconds, so those of the module run at the same time and the tests look at what they did. The one that
`make test` stops is forked from this process, the others are programs of their own.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import forked_command
from safetensors.torch import load_file
from tiny import write_tiny_run
from typer.testing import CliRunner

from wishbone.cli import app

pytestmark = pytest.mark.slow

CONFIG = """\
model: {name: ./model}
data: {train: pairs.jsonl, max_length: 64}
adapter: {rank: 2}
training: {batch_size: 2, gradient_accumulation: 2, save_steps: 1000000, warmup_ratio: 0, scheduler: constant}
"""
WITHIN = 240
"""Seconds for one run on a busy machine; alone it takes ten."""
ENDLESS = "training.max_steps=100000"


@dataclass
class Run:
    """A `wishbone train` in a process of its own, and what it said when it has ended."""

    folder: Path
    process: Any
    directory: Path
    out: str = ""
    error: str = ""
    took: float = field(default=0.0)

    def wait_until(self, is_so: str) -> None:
        """Wait for a file of the run directory."""
        until = time.monotonic() + WITHIN
        while not list(self.directory.glob(is_so)):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)

    def send(self, *signals: signal.Signals) -> None:
        """Send signals, a second apart."""
        for number, each in enumerate(signals):
            if number:
                time.sleep(1)
            self.process.send_signal(each)

    def end(self) -> int:
        began = time.monotonic()
        self.out, self.error = self.process.communicate(timeout=WITHIN)
        self.took = time.monotonic() - began
        return self.process.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("a place, 'quoted'")
    write_tiny_run(place, CONFIG, pairs=40)
    return place


def unignored() -> None:
    """A shell starts commands in the background with SIGINT ignored; a run keeps that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def environment_in(folder: Path) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "WISHBONE_CACHE": str(folder / "cache"),
        "COLUMNS": "400",
    }


def start(folder: Path, name: str, *arguments: str, **options: object) -> Run:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, "-m", "wishbone", "train", "tiny.yaml", f"output.dir={name}", *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        env=environment_in(folder),
        **{"preexec_fn": unignored, **streams},  # type: ignore[call-overload]
    )
    return Run(folder, process, folder / name)


def fork(folder: Path, name: str, *arguments: str) -> Run:
    command = ["train", "tiny.yaml", f"output.dir={name}", *arguments]
    return Run(folder, forked_command(command, folder, environment_in(folder)), folder / name)


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def stopped_by(begin: Callable[..., Run], folder: Path, *signals: signal.Signals) -> dict[signal.Signals, Run]:
    """Start a run for each signal, at the same time, and stop each after some steps."""
    runs = {number: begin(folder, f"stopped by {number.name}, {begin.__name__}", ENDLESS) for number in signals}
    for number, run in runs.items():
        run.wait_until("metrics.jsonl")
        run.send(number)
    for run in runs.values():
        run.end()
    return runs


@pytest.fixture(scope="module")
def stopped(folder: Path) -> dict[signal.Signals, Run]:
    return stopped_by(fork, folder, signal.SIGTERM)


def learned(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter" / "adapter_model.safetensors")


def printed_command(run: Run) -> list[str]:
    (line,) = [line for line in run.error.splitlines() if line.endswith("--resume")]
    return shlex.split(line)


def has_saved_a_checkpoint(stopped: dict[signal.Signals, Run]) -> None:
    for number, run in stopped.items():
        assert run.process.returncode == SIGNALS[number], run.error
        (checkpoint,) = (run.directory / "checkpoints").glob("checkpoint-*")
        summary = json.loads((run.directory / "summary.json").read_text())
        steps = summary["steps"]
        assert checkpoint.name == f"checkpoint-{steps}"
        assert summary["status"] == "stopped" and summary["reason"] == f"{number.name} after step {steps}"
        assert f"stopping: {number.name}: the step under way ends, then a checkpoint is saved, within 300" in run.error
        assert f"stopped: by {number.name}; {checkpoint.name} is in {run.directory}/checkpoints" in run.error
        assert "Traceback" not in run.error
        assert not (run.directory / ".lock").exists()
        assert len((run.directory / "metrics.jsonl").read_text().splitlines()) == steps


@pytest.mark.long
def test_every_signal_saves_a_checkpoint_of_a_program(folder: Path) -> None:
    has_saved_a_checkpoint(stopped_by(start, folder, *SIGNALS))


def test_a_signal_saves_a_checkpoint_and_the_printed_command_continues(
    folder: Path, stopped: dict[signal.Signals, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory has spaces and quotes in its name. The run that goes on is bitwise the one that never stopped.

    Both run in this process; the one that was stopped had its own.
    """
    has_saved_a_checkpoint(stopped)
    run = stopped[signal.SIGTERM]
    steps = json.loads((run.directory / "summary.json").read_text())["steps"] + 2
    command = [word for word in printed_command(run) if word != ENDLESS]
    command.insert(-1, f"training.max_steps={steps}")
    monkeypatch.chdir(folder)
    continued = CliRunner().invoke(app, command[command.index("train") :])
    assert continued.exit_code == 0, continued.stderr
    whole = CliRunner().invoke(app, ["train", "tiny.yaml", "output.dir=whole", f"training.max_steps={steps}"])
    assert whole.exit_code == 0, whole.stderr
    first, second = learned(run.directory), learned(folder / "whole")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def various(folder: Path) -> dict[str, Run]:
    """Runs that are disturbed in other ways, all at the same time."""
    short = "training.max_steps=3"
    twice = start(folder, "twice", ENDLESS)
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(8000)]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hanging = start(folder, "hanging", "data.train=many.jsonl", "training.gradient_accumulation=4000")
    loading = start(folder, "loading", ENDLESS)
    closed = start(
        folder, "closed", short, stderr=None, preexec_fn=lambda: [os.close(descriptor) for descriptor in (0, 1, 2)]
    )
    with open("/dev/full", "w") as full:
        to_full_disk = start(folder, "full", short, stdout=full, stderr=full)
    to_nobody = start(folder, "nobody", short)
    for stream in (to_nobody.process.stdout, to_nobody.process.stderr):
        assert stream is not None
        stream.close()
    loading.wait_until(".lock")
    loading.send(signal.SIGTERM)
    twice.wait_until("metrics.jsonl")
    beside = start(folder, "twice", ENDLESS, "--resume")
    beside.end()
    hanging.wait_until("summary.json")
    hanging.send(signal.SIGINT, signal.SIGINT)
    twice.send(signal.SIGTERM)
    for run in (loading, hanging, twice, closed, to_full_disk):
        run.end()
    to_nobody.process.wait(WITHIN)
    return {
        "twice": twice,
        "beside": beside,
        "hanging": hanging,
        "loading": loading,
        "closed": closed,
        "full": to_full_disk,
        "nobody": to_nobody,
    }


@pytest.mark.long
@pytest.mark.parametrize("name", ["closed", "full", "nobody"])
def test_what_cannot_be_printed_stops_no_run(various: dict[str, Run], name: str) -> None:
    run = various[name]
    assert run.process.returncode == 0
    assert json.loads((run.directory / "summary.json").read_text())["status"] == "done"
    assert len((run.directory / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.long
def test_a_signal_while_loading_ends_at_once_and_leaves_nothing(various: dict[str, Run]) -> None:
    run = various["loading"]
    assert run.process.returncode == 143
    assert "stopped: by SIGTERM; nothing was written" in run.error
    assert not run.directory.exists()


@pytest.mark.long
def test_the_second_signal_ends_a_step_at_once(various: dict[str, Run]) -> None:
    """One step of 8,000 pairs takes many seconds; the run ends in it."""
    run = various["hanging"]
    assert run.process.returncode == 130
    assert "ended at once, at the second signal; no checkpoint was written yet" in run.error
    assert "Traceback" not in run.error


@pytest.mark.long
def test_a_live_run_is_not_continued(various: dict[str, Run]) -> None:
    run = various["beside"]
    assert run.process.returncode == 2
    assert "a run that has not ended writes into" in run.error
    assert f"process {various['twice'].process.pid} on" in run.error
    assert various["twice"].process.returncode == 143


@pytest.mark.long
def test_a_signal_in_the_first_moment_ends_with_a_word(folder: Path) -> None:
    """While commands are imported; Python itself needs some milliseconds before that."""
    for seconds in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4):
        run = start(folder, "early")
        time.sleep(seconds)
        run.send(signal.SIGTERM)
        if run.end() != -signal.SIGTERM:  # else Python had not begun
            break
    assert run.process.returncode == 143
    assert "stopped: by SIGTERM; nothing was written" in run.error
    assert not run.directory.exists()


@pytest.mark.long
def test_figures_stand_beside_their_step(various: dict[str, Run], stopped: dict[signal.Signals, Run]) -> None:
    """Lines on standard error against `metrics.jsonl`: printed at every tenth of the run, with that step's figures."""
    run = start(various["full"].folder, "figures", "training.max_steps=4", "training.learning_rate=1e-2")
    assert run.end() == 0, run.error
    logged = {
        line["step"]: line for line in map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
    }
    shown = [line for line in run.error.splitlines() if line.startswith("step ")]
    assert shown == [
        f"step {step}/4  loss {logged[step]['loss']:.3f}  margin {logged[step]['rewards/margins']:.3f}  "
        f"accuracy {logged[step]['rewards/accuracies']:.3f}"
        for step in range(1, 5)
    ]
    assert len({line.split("  ")[1] for line in shown}) > 1
