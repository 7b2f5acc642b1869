"""The tests that the builder has in JavaScript: in Node, and of its page in a real Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BUILDER = Path(__file__).parent.parent.parent / "builder"
IN_NODE = sorted(path.relative_to(BUILDER) for path in (BUILDER / "test").glob("*.test.js"))
IN_CHROMIUM = sorted(path.relative_to(BUILDER) for path in (BUILDER / "chromium").glob("*.test.js"))
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no Node here: install nodejs, 18 or later")


def missing() -> str:
    """Why the page cannot be opened here, or nothing."""
    program = "process.stdout.write(require('./chromium/browser.js').missing() || '')"
    return subprocess.run(["node", "-e", program], cwd=BUILDER, capture_output=True, text=True, check=True).stdout


def run(test: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "NODE_OPTIONS": ""}
    command = ["node", "--test", "--test-reporter=tap", str(test)]
    outcome = subprocess.run(command, cwd=BUILDER, env=environment, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, f"{outcome.stdout}\n{outcome.stderr}"
    assert "\n# pass 0" not in outcome.stdout, outcome.stdout


@needs_node
@pytest.mark.parametrize("test", IN_NODE, ids=lambda path: path.name)
def test_in_node(test: Path):
    run(test)


@needs_node
@pytest.mark.parametrize(
    "test",
    [pytest.param(path, marks=() if path.name == "plan.test.js" else pytest.mark.long) for path in IN_CHROMIUM],
    ids=lambda path: path.name,
)
def test_in_chromium(test: Path):
    if reason := missing():
        pytest.skip(reason)
    run(test)


def test_there_are_tests_of_both_kinds():
    assert len(IN_NODE) >= 3
    assert len(IN_CHROMIUM) >= 3


@needs_node
def test_nothing_has_to_be_installed_to_run_the_builder(tmp_path: Path):
    shutil.copytree(BUILDER, tmp_path / "builder", ignore=shutil.ignore_patterns("node_modules"))
    command = [
        "node",
        str(tmp_path / "builder" / "src" / "main.js"),
        "--model",
        "m",
        "--data",
        "pairs.jsonl",
        "--parameters-billion",
        "1",
    ]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    assert outcome.stdout.startswith("# Written by")
