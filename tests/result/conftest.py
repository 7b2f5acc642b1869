from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from learned import Learned, learn
from typer.testing import CliRunner, Result

from wishbone.cli import app
from wishbone.config import dump_config, parse_config

Command = Callable[..., Result]


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    return learn(tmp_path_factory.mktemp("learned"))


def write_pairs(path: Path) -> None:
    """Ten pairs of texts in `path`."""
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run(learned: Learned, tmp_path: Path) -> Path:
    """A run of the tiny model with an adapter, trained in the chat template; four of its ten pairs were held out."""
    write_pairs(tmp_path / "pairs.jsonl")
    directory = tmp_path / "run"
    shutil.copytree(learned.run, directory)
    config = parse_config(
        f"model: {{name: {learned.base.name}, dtype: float32}}\n"
        f"data: {{train: {tmp_path / 'pairs.jsonl'}, eval_fraction: 0.4, template: chat}}\n"
    )
    (directory / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return directory


@pytest.fixture
def full_run(learned: Learned, run: Path) -> Path:
    """The same as a run that trained every weight."""
    shutil.rmtree(run / "adapter")
    learned.merged.save_pretrained(run / "model")
    learned.tokenizer.save_pretrained(run / "model")
    return run


@pytest.fixture
def wishbone() -> Command:
    def call(*words: object, typed: str = "") -> Result:
        environment = {"COLUMNS": "100"}
        return CliRunner().invoke(app, [str(word) for word in words], input=typed, env=environment)

    return call
