"""The folders of the benchmarks: commands use rendering, both use the harness, and every result file is shown."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from benchmarks.harness.results import FOLDER, ROOT

PACKAGE = ROOT / "benchmarks"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)
MAY_IMPORT = {
    "harness": {"harness"},
    "rendering": {"harness", "rendering"},
    "commands": {"harness", "rendering", "commands"},
}


def imported(path: Path) -> set[str]:
    """Folders of this package that a module imports from, for types alone included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[1] for name in names if name.startswith("benchmarks.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_imports_go_one_way(path: Path):
    assert imported(path) <= MAY_IMPORT[path.parent.name]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_command_has_a_main_and_what_runs_in_a_child_a_measure(path: Path):
    module = importlib.import_module(f"benchmarks.commands.{path.stem}")
    assert callable(module.main)
    kinds = set(re.findall(r"\bJob\(\s*\"(\w+)\"", path.read_text(encoding="utf-8")))
    assert kinds <= {path.stem}
    assert not kinds or callable(module.measure)


@pytest.mark.documents
def test_every_file_of_results_is_quoted_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "tests" / "planning").glob("*.py")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert [path.name for path in FOLDER.iterdir() if path.name not in text] == []
