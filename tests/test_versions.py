"""Locked versions are complete, exact and the same everywhere; the table of versions is what the records say."""

from __future__ import annotations

import json
import platform
import re
import runpy
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from version_record import write_record

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TABLES = runpy.run_path(str(ROOT / "scripts" / "document_versions.py"))
TORCH = Requirement((ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8").strip())
LOCKS = ["requirements/locked.txt", "requirements/tools.txt", "requirements/docs.txt"]


def entries(lock: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Requirement and hashes of each package of a lock file."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    found = {}
    for entry in re.split(r"\n(?=[\w])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)):
        requirement, *hashes = entry.replace("\\\n", "").split("--hash=")
        parsed = Requirement(requirement)
        assert parsed.name not in found, f"{parsed.name} has two versions"
        found[parsed.name] = (parsed, [value.strip() for value in hashes])
    return found


LOCKED = {name: requirement for name, (requirement, _) in entries(LOCKS[0]).items()}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_exact_versions_and_hashes_and_names_no_index(lock: str):
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE), "an option of pip"
    for requirement, hashes in entries(lock).values():
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement


def asked_for() -> list[Requirement]:
    named = [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
        *PROJECT["dependency-groups"]["build"],
        *PROJECT["build-system"]["requires"],
    ]
    return [Requirement(text) for text in named]


@pytest.mark.parametrize("requirement", asked_for(), ids=str)
def test_every_package_of_the_project_is_locked_within_its_range(requirement: Requirement):
    locked = TORCH if requirement.name == "torch" else LOCKED[requirement.name.lower()]
    (specifier,) = locked.specifier
    assert requirement.specifier.contains(specifier.version), str(locked)


def test_torch_and_the_libraries_of_its_cuda_wheel_are_left_to_the_machine():
    assert not [name for name in LOCKED if name == "torch" or name.startswith(("nvidia", "cuda"))]
    assert {"sympy", "networkx", "jinja2", "filelock", "fsspec", "mpmath", "typing-extensions"} <= LOCKED.keys()
    assert [specifier.operator for specifier in TORCH.specifier] == ["=="]


def test_tools_name_their_one_package():
    assert LOCKED.keys().isdisjoint(entries(LOCKS[1]))
    assert entries(LOCKS[1]).keys() == {"uv"}


def a_run(**changes: object) -> dict[str, object]:
    outcome = {"passed": 12, "failed": 0, "error": 0, "skipped": 3}
    whole = {"date": "2026-01-02", "commit": "abc1234", "python": "3.12.1", "machine": "Linux x86_64", "gpu": None}
    return {**whole, "outcome": outcome, "versions": {"torch": "2.13.0", "trl": "1.16.0"}, **changes}


def test_the_table_has_a_column_for_each_run_and_says_what_failed():
    failed = {"passed": 11, "failed": 1, "error": 0, "skipped": 3}
    runs = {
        "oldest": a_run(outcome=failed, versions={"torch": "2.13.0", "trl": "1.15.0"}),
        "locked": a_run(),
        "locked-interpreter": a_run(outcome={"passed": 5, "failed": 0, "error": 0, "skipped": 0}),
        "gpu": a_run(gpu="NVIDIA H200", versions={"torch": "2.11.0"}),
    }
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLES["table"](runs).splitlines()]
    assert rows[0] == ["", "`make test`", "`make oldest`", "`make gpu`"]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["All tests"] == ["12 passed, 3 skipped", "11 passed, 1 failed, 3 skipped", "12 passed, 3 skipped"]
    assert by_name["Kernels in Triton's interpreter"] == ["5 passed", "", ""]
    assert by_name["Machine"] == ["Linux x86_64", "Linux x86_64", "NVIDIA H200"]
    assert by_name["`trl`"] == ["1.16.0", "1.15.0", ""]


@pytest.mark.documents
def test_the_table_of_the_page_is_fresh():
    runs = json.loads((ROOT / "docs" / "versions.json").read_text(encoding="utf-8"))
    (written,) = TABLES["TABLE"].findall((ROOT / "docs" / "versions.md").read_text(encoding="utf-8"))
    assert written == TABLES["table"](runs), "run make versions"


def test_what_reads_documentation_is_marked():
    reads = re.compile(r"^.*(?:ROOT|DOCS|parents?\b).*\.md\".*$", re.MULTILINE)
    tests = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    readers = {path for path, text in tests.items() if reads.search(text)}
    assert len(readers) >= 5
    unmarked = [path.name for path in readers if "mark.documents" not in tests[path]]
    assert not unmarked, "mark them with pytest.mark.documents, so that a change of documentation runs them"


def test_a_record_says_what_is_installed_and_what_was_counted(tmp_path: Path):
    write_record(tmp_path / "record-x.json", {"passed": [1, 2], "skipped": [1], "warnings": [1]}, "H200")
    written = json.loads((tmp_path / "record-x.json").read_text(encoding="utf-8"))
    assert written["outcome"] == {"passed": 2, "failed": 0, "error": 0, "skipped": 1}
    assert written["versions"]["transformers"] == version("transformers")
    assert (written["python"], written["gpu"]) == (platform.python_version(), "H200")
    assert TABLES["name_of"](tmp_path / "record-x.json") == "x"
