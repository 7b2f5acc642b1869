"""The judge compares two runs of TRL's tests, and runs them without a network."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "judge_with_trl_tests.py"
JUDGE = runpy.run_path(str(SCRIPT))
Outcome, verdict = JUDGE["Outcome"], JUDGE["verdict"]

CHECKOUT = """
import os

import pytest
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


class TestDPOTrainer:
    def test_both(self, tmp_path):
        assert DPOConfig(output_dir=str(tmp_path)).bf16 is False
        assert load_dataset("trl-internal-testing/zen", "standard_preference")["train"].num_rows == 17
        name = "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5"
        words = AutoTokenizer.from_pretrained(name)("A road", return_tensors="pt")
        assert AutoModelForCausalLM.from_pretrained(name)(**words).logits.isfinite().all()

    def test_trl(self):
        assert DPOTrainer.__module__.startswith("trl.")

    def test_wishbone(self):
        assert DPOTrainer.__module__.startswith("wishbone.")

    @pytest.mark.parametrize("name", ["SECRET"])
    def test_neither(self, name):
        assert name in os.environ, "[bold]only what[/bold] locates things is passed on"

    @pytest.mark.skip(reason="not here")
    def test_skipped(self):
        pass
"""


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("passed", "passed", "passed by both"),
        ("passed", "failed", "only TRL"),
        ("passed", "skipped", "only TRL"),
        ("failed", "passed", "only Wishbone"),
        ("skipped", "passed", "only Wishbone"),
        ("failed", "failed", "failed by both"),
        ("skipped", "failed", "failed by both"),
        ("skipped", "skipped", "skipped by both"),
    ],
)
def test_every_pair_of_outcomes_has_a_verdict(theirs: str, ours: str, expected: str):
    assert verdict(Outcome(theirs), Outcome(ours)) == expected


def test_a_folder_without_tests_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert JUDGE["main"]([str(tmp_path)]) == 2
    assert "has no tests/test_dpo_trainer.py" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
def test_tests_run_against_both_trainers_with_stand_ins(tmp_path: Path):
    (tmp_path / "trl" / "tests").mkdir(parents=True)
    (tmp_path / "trl" / "tests" / "test_dpo_trainer.py").write_text(CHECKOUT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(tmp_path / "trl"), "--work", str(tmp_path / "work")],
        env={**os.environ, "SECRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    numbers = dict(re.findall(r"│ (passed by both|only \w+|failed by both|skipped by both) *│ (\d+)", done.stdout))
    assert numbers == {
        "passed by both": "1",
        "only TRL": "1",
        "only Wishbone": "1",
        "failed by both": "1",
        "skipped by both": "1",
    }
    assert "only TRL: TestDPOTrainer::test_trl\n    Wishbone: failed, AssertionError" in done.stdout
    assert (
        "failed by both: TestDPOTrainer::test_neither[SECRET]\n    TRL: failed, AssertionError: [bold]" in done.stdout
    )
