"""`wishbone train --gpus N` and `--processes N`: what is refused, and real runs of several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny import write_tiny_run

from wishbone.errors import RequestError
from wishbone.run.launch import STARTED_AS, choose_one_gpu, gpus_asked_for, launch

CONFIG = """\
model: {name: ./model}
data: {train: pairs.jsonl, max_length: 64}
adapter: {rank: 2}
training: {batch_size: 4, gradient_accumulation: 2, learning_rate: 1.0e-2}
"""


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", ""])
def test_what_is_no_number_is_refused(asked: str) -> None:
    with pytest.raises(RequestError, match="give a number from 1 on, or all"):
        gpus_asked_for(asked)


@pytest.mark.parametrize("asked", ["2", "all"])
def test_without_a_gpu_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RequestError, match="without --gpus the run uses the CPU"):
        gpus_asked_for(asked)


@pytest.mark.parametrize("asked", ["2", "all"])
def test_what_may_hide_gpus_is_named(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RequestError, match="on this machine, where CUDA_VISIBLE_DEVICES is ''; without --gpus"):
        gpus_asked_for(asked)


@pytest.mark.parametrize(("cores", "threads"), [(8, "4"), (1, "1")])
def test_processes_share_out_the_cores_that_are_theirs(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: str
) -> None:
    """Schedulers and containers give fewer than the machine has; one setting of one's own stays."""
    given: list[str | None] = []
    monkeypatch.setattr("wishbone.run.launch.read_cpu", lambda: SimpleNamespace(cores=cores))
    monkeypatch.setattr(
        "torch.distributed.launcher.api.elastic_launch",
        lambda *_: lambda *_: given.append(os.environ.get("OMP_NUM_THREADS")),
    )
    monkeypatch.setenv(STARTED_AS, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert launch(["train"], processes=2) == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch(["train"], processes=2) == 0
    assert given == [threads, "3"]


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (gpus_asked_for("all"), gpus_asked_for("1"), gpus_asked_for("2")) == (2, 1, 2)
    with pytest.raises(RequestError, match="PyTorch sees 2 here"):
        gpus_asked_for("3")


@pytest.mark.parametrize(("seen", "first"), [(None, "0"), ("2,3", "2"), ("GPU-8a,GPU-9b", "GPU-8a")])
def test_a_process_alone_uses_the_first_of_several(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, first: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that it is put back in the end
        monkeypatch.delenv(name)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_one_gpu() == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == first


def test_one_of_several_processes_keeps_what_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "0,1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    choose_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_machines_need_a_place_to_meet() -> None:
    with pytest.raises(RequestError, match="--meet-at HOST"):
        launch(["train"], processes=1, nodes=2)


@pytest.mark.parametrize("place", ["a b", "host:port", "host:70000", "host:0", ":29400", "", "::1:5", "ho\nst"])
def test_what_is_no_place_is_refused(place: str) -> None:
    with pytest.raises(RequestError, match="write HOST or HOST:PORT"):
        launch(["train"], processes=1, nodes=2, meet_at=place)


def train(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wishbone", "train", "tiny.yaml", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "400", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, text=True, env=environment, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("several")
    write_tiny_run(place, CONFIG, pairs=43)
    return place


@pytest.mark.long
def test_the_run_is_that_of_one_process(folder: Path) -> None:
    learned = []
    for name, options in (("one", []), ("two", ["--processes", "2"])):
        process = train(folder, "training.max_steps=6", f"output.dir={name}", *options)
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        assert error.count("step 6/6") == 1, error
        learned.append(load_file(folder / name / "adapter" / "adapter_model.safetensors"))
    one, two = learned
    for name in one:
        assert (one[name] - two[name]).norm() <= 1e-5 * one[name].norm() + 1e-9, name


@pytest.mark.long
def test_it_continues_with_another_number_of_processes(folder: Path) -> None:
    in_parts = [(2, ["--processes", "4"]), (4, ["--processes", "2", "--resume"]), (6, ["--resume"])]
    for name, parts in {"at once": [(6, [])], "in parts": in_parts}.items():
        for steps, options in parts:
            process = train(
                folder, f"training.max_steps={steps}", "training.scheduler=constant", f"output.dir={name}", *options
            )
            _, error = process.communicate(timeout=300)
            assert process.returncode == 0, error
    one, two = (load_file(folder / name / "adapter" / "adapter_model.safetensors") for name in ("at once", "in parts"))
    assert all((one[name] - two[name]).norm() <= 1e-5 * one[name].norm() + 1e-9 for name in one)


@pytest.mark.long
@pytest.mark.parametrize(("number", "status", "count"), [(signal.SIGTERM, 143, 2), (signal.SIGKILL, 1, 4)])
def test_signals(folder: Path, number: signal.Signals, status: int, count: int) -> None:
    """SIGTERM to the launcher saves a checkpoint; SIGKILL of one process ends the run with its reason."""
    run = folder / number.name
    process = train(folder, "training.max_steps=100000", f"output.dir={run.name}", "--processes", str(count))
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    children = psutil.Process(process.pid).children()
    (process if number == signal.SIGTERM else children[-1]).send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == status, error
    assert all(not child.is_running() or child.status() == psutil.STATUS_ZOMBIE for child in children)
    if number == signal.SIGTERM:
        assert len(list((run / "checkpoints").glob("checkpoint-*"))) == 1
        assert "--processes 2 --resume" in error
    else:
        assert "was ended by SIGKILL; the system does that where memory runs out" in error
        assert "gloo" not in error
