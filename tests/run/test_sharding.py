"""`model.sharding`: when a run divides its model, what is refused, and real runs that equal one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from tiny import write_tiny_run

from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError
from wishbone.run.sharding import OF_DIVIDED, divided_before, divides_model

CONFIG = """\
model: {name: ./model}
data: {train: pairs.jsonl, max_length: 64, eval_fraction: 0.1}
adapter: {rank: 2}
training: {batch_size: 4, gradient_accumulation: 2, learning_rate: 1.0e-3, max_steps: 4, scheduler: constant}
"""


def decided(processes: int, asked: str, before: bool | None, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    values: dict[str, Any] = {"model": {"name": "m", "sharding": asked}, "data": {"train": "d"}}
    return divides_model(RunConfig.model_validate(values), {}, Dataset.from_list([{"prompt": []}]), before)


@pytest.mark.parametrize(
    ("processes", "asked", "before", "divided"),
    [
        (1, "auto", None, False),
        (1, "none", None, False),
        (2, "none", None, False),
        (2, "fsdp", None, True),
        (2, "auto", True, True),
        (3, "auto", False, False),
        (2, "fsdp", True, True),
        (2, "none", False, False),
    ],
)
def test_what_was_asked_for_and_done_before_decides(
    monkeypatch: pytest.MonkeyPatch, processes: int, asked: str, before: bool | None, divided: bool
) -> None:
    assert decided(processes, asked, before, monkeypatch) is divided


@pytest.mark.parametrize(
    ("processes", "asked", "before", "said"),
    [
        (1, "fsdp", None, "this run has one process; start it with --gpus N"),
        (1, "auto", True, "is divided, and here it would be whole; continue with --gpus N"),
        (2, "none", True, "is divided, and here it would be whole; continue with --gpus N"),
        (2, "fsdp", False, "is whole, and here it would be divided; continue with model.sharding none"),
    ],
)
def test_refusals_name_the_remedy(
    monkeypatch: pytest.MonkeyPatch, processes: int, asked: str, before: bool | None, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        decided(processes, asked, before, monkeypatch)


def test_a_checkpoint_tells_whether_its_model_was_divided(tmp_path: Path) -> None:
    assert divided_before(tmp_path) is None
    for step, divided in ((1, True), (2, False)):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / (OF_DIVIDED if divided else "optimizer.pt")).touch()
        assert divided_before(tmp_path) is divided


def train(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "wishbone", "train", "tiny.yaml", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "400", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, text=True, env=environment, stderr=subprocess.PIPE, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_divided_run_is_that_of_one_process_and_continues_with_another_number(tmp_path: Path, method: str) -> None:
    write_tiny_run(tmp_path, CONFIG, pairs=43)
    asked = f"adapter.method={method}"
    train(tmp_path, asked, "output.dir=one")
    said = train(tmp_path, asked, "output.dir=parts", "model.sharding=fsdp", "training.max_steps=2", "--processes", "2")
    assert "The guard does not watch a sharded model" in said
    train(tmp_path, asked, "output.dir=parts", "--processes", "3", "--resume")
    file = "adapter/adapter_model.safetensors" if method == "lora" else "model/model.safetensors"
    one, parts = (load_file(tmp_path / name / file) for name in ("one", "parts"))
    assert one.keys() == parts.keys()
    for name, weight in one.items():
        assert weight.dtype == parts[name].dtype
        assert (weight - parts[name]).norm() <= 1e-4 * weight.norm() + 1e-8, name
