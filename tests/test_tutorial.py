"""What newcomers follow is true: the tutorial's commands and the notebook's cells run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.documents
ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
NOTEBOOK = ROOT / "notebooks" / "wishbone.ipynb"


def with_this_command(folder: Path) -> dict[str, str]:
    """Variables of a shell in which `wishbone` is this package."""
    command = folder / "bin" / "wishbone"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m wishbone "$@"\n')
    command.chmod(0o755)
    return os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "COLUMNS": "120"}


def cells() -> list[str]:
    """Code of the notebook, cell by cell."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_one_and_has_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], len(cells()) > 5) == (4, True)
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    compile("\n".join(cells()), "notebook", "exec")


@pytest.mark.long
def test_the_notebook_runs(tmp_path: Path, smollm2: object):
    outcome = subprocess.run(
        [sys.executable, "-c", "\n\n".join(cells())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    before, after = (re.search(rf"^{name}: *(.*)", outcome.stdout, re.MULTILINE) for name in ("before", "after"))
    assert before and after and before[1] != after[1]
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", outcome.stdout)]
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert (tmp_path / "notebook-gguf" / "notebook-gguf.Q8_0.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.long
def test_the_tutorial_runs(tmp_path: Path, smollm2: object):
    commands = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(commands) == 6
    outcome = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", "\n".join(commands)],
        cwd=tmp_path, env=with_this_command(tmp_path), capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    summary = json.loads((tmp_path / "runs" / "plain" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("done", 16)
    assert summary["heldout_after"]["loss"] < summary["heldout_before"]["loss"]
    (asked,) = json.loads((tmp_path / "runs" / "plain" / "answers.json").read_text())
    assert asked["before"] != asked["after"]
    assert (tmp_path / "plain.gguf").read_bytes()[:4] == b"GGUF"
    for said in ("Fits: ", "Accuracy", "checked: ", "someone/plain-answers"):
        assert said in outcome.stdout, said
