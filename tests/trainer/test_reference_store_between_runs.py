"""Runs that share a reference store at the same time, and what a run from a configuration says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny import tiny_tokenizer

from trainer.preference_runs import chat_pairs, losses, model_for
from trainer.test_reference_store import PAIRS, trained, use
from wishbone.config.schema import RunConfig
from wishbone.run.run import train

TESTS = Path(__file__).parent.parent
PROGRAM = """
import sys
from pathlib import Path
from trainer.test_reference_store import losses, trained, use
trainer = trained(Path(sys.argv[1]), sys.argv[2], seed=int(sys.argv[3]), max_steps=10)
print("RESULT", *use(trainer), *losses(trainer))
"""


@pytest.mark.long
def test_two_runs_fill_one_store_at_once(tmp_path: Path) -> None:
    store = str(tmp_path / "references.sqlite")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), store]
    runs = [
        subprocess.Popen([*command, seed], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in ("1", "2")
    ]
    answers = [run.communicate(timeout=240) for run in runs]
    for seed, (out, err) in enumerate(answers, start=1):
        lines = [line.split() for line in out.splitlines() if line.startswith("RESULT")]
        assert lines, err[-3000:]
        assert "reference store" not in err
        reused, computed = map(int, lines[0][1:3])
        assert reused + computed == 2 * PAIRS and computed <= PAIRS
        live = trained(tmp_path, "off", seed=seed, max_steps=10)
        assert list(map(float, lines[0][3:])) == pytest.approx(losses(live), abs=1e-6)
    assert use(trained(tmp_path, store)) == (PAIRS, 0)


def test_a_run_from_a_configuration_says_what_it_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wishbone")
    tokenizer = tiny_tokenizer()
    model_for(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    Dataset.from_list(chat_pairs(12).to_list()).to_json(tmp_path / "pairs.jsonl")

    def run(name: str, **training: Any) -> Any:
        sections = {
            "model": {"name": str(tmp_path / "base"), "dtype": "float32"},
            "adapter": {"rank": 2},
            "data": {"train": str(tmp_path / "pairs.jsonl"), "eval_fraction": 0.25},
            "training": {"epochs": 2.0, "gradient_accumulation": 3, **training},
            "output": {"dir": str(tmp_path / name)},
        }
        train(RunConfig.model_validate(sections))
        return json.loads((tmp_path / name / "summary.json").read_text())["reference_pairs"]

    store = str(tmp_path / "references.sqlite")
    evaluations, epochs, heldout, learned = 3, 2, 3, 9  # before the first epoch and after each
    asked = evaluations * heldout + epochs * learned
    assert run("first", reference_store=store) == {"reused": asked - 12, "computed": 12}
    assert f"Reference log-probabilities: 12 pairs computed, {asked - 12} reused (" in caplog.text
    caplog.clear()
    assert run("second", reference_store=store, learning_rate=1e-4) == {"reused": asked, "computed": 0}
    caplog.clear()
    assert run("third", reference_store="off") is None
    assert "Reference log-probabilities" not in caplog.text
    assert "reference" not in capsys.readouterr().err
