"""The README is true: its commands run as they stand, and its figures are those of `benchmarks/results`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any, get_args

import pytest
from forked import Forked, forked_command

from wishbone.config.schema import LossName
from wishbone.data.formats import FORMATS

pytestmark = pytest.mark.documents
ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LONGEST = 130
RESULTS = ROOT / "benchmarks" / "results"


def test_its_counts_are_those_of_the_program():
    flowing = " ".join(TEXT.split())
    assert f"[{len(FORMATS)} layouts]" in flowing and f"[the {len(get_args(LossName))} losses]" in flowing
    example = ROOT / "examples" / "plain-answers"
    trained, held_out = (len((example / f"{name}.jsonl").read_text().splitlines()) for name in ("train", "heldout"))
    assert f"trains on {trained} [pairs]" in flowing and f"on {held_out} held-out pairs" in flowing


def blocks(heading: str, language: str) -> list[str]:
    """Text of the fenced blocks of a language in the section below a heading."""
    section = re.split(r"^## ", TEXT.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_it_is_short():
    assert len(TEXT.splitlines()) <= LONGEST


def environment_of_a_newcomer(folder: Path) -> dict[str, str]:
    """Variables of a shell in a new virtual environment, which sees the packages of this one but not this package.

    `pip install .` then finds everything that it needs. It builds with the build backend that is installed; where none
    is, pip fetches it. pip is that of this environment, too, where there is one: Python would unpack its own.
    """
    has_pip = importlib.util.find_spec("pip") is not None
    venv.create(folder, with_pip=not has_pip)
    here = Path(sysconfig.get_path("purelib"))
    there = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(there, "packages-of-the-tests.pth").write_text(f"{here}\n", encoding="utf-8")
    if has_pip:
        command = folder / "bin" / "pip"
        command.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m pip "$@"\n', encoding="utf-8")
        command.chmod(0o755)
    own = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(folder), "COLUMNS": "120"}
    own["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    if importlib.util.find_spec("hatchling"):
        own["PIP_NO_BUILD_ISOLATION"] = "1"
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own


def own_pairs() -> tuple[str, list[str], str]:
    """The section on own pairs: what writes the file of pairs, the commands, and the code that uses the result."""
    (shell,), (use,) = (blocks("Train on your own pairs", language) for language in ("sh", "python"))
    install, pairs, commands = re.fullmatch(
        r"(pip install .*?)^(cat .*?^END\n)(.*)", shell, re.MULTILINE | re.DOTALL
    ).groups()
    assert install == "pip install .\n"
    return pairs, commands.replace("\\\n", " ").splitlines(), use


def clone_in(folder: Path) -> Path:
    """What pip needs of this repository."""
    clone = folder / "clone"
    clone.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    shutil.copytree(ROOT / "src", clone / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return clone


def is_trained(run: Path) -> None:
    """A run directory holds what the README says of it."""
    assert (run / "report.html").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["pairs"]["train"]) == ("done", 6, 4)
    (asked,) = json.loads((run / "answers.json").read_text())
    assert asked["before"] != asked["after"]


@pytest.mark.long  # the two tests below install it and run every command; here a shell does it all, each in a program
def test_own_pairs_from_install_to_answer(tmp_path: Path, smollm2: object):
    clone, environment = clone_in(tmp_path), environment_of_a_newcomer(tmp_path / "venv")
    (commands,) = blocks("Train on your own pairs", "sh")
    assert "Fits: " in said(["bash", "-eu", "-o", "pipefail", "-c", commands], clone, environment)
    is_trained(clone / "runs" / "mine")
    assert said(["python", "-c", own_pairs()[2]], clone, environment).strip()


@pytest.mark.slow
def test_pip_installs_it(tmp_path: Path, smollm2: object):
    clone, environment = clone_in(tmp_path), environment_of_a_newcomer(tmp_path / "venv")
    pairs, (init, *_), _ = own_pairs()
    said(["bash", "-eu", "-c", f"pip install .\n{pairs}{init}"], clone, environment)
    installed = said(["python", "-c", "import wishbone; print(wishbone.__file__)"], tmp_path, environment)
    assert Path(installed.strip()).is_relative_to(tmp_path / "venv")
    assert "smollm2-135m-instruct" in (clone / "run.yaml").read_text()


@pytest.mark.slow
def test_own_pairs_from_file_to_answer(tmp_path: Path, smollm2: object):
    import wishbone.run.run  # noqa: F401  so that no child has to

    pairs, commands, use = own_pairs()
    assert [command.split()[1] for command in commands] == ["init", "plan", "train", "report", "compare"]
    said(["bash", "-eu", "-c", pairs], tmp_path, dict(os.environ))

    answers = {command: shown(forked_command(shlex.split(command)[1:], tmp_path, os.environ)) for command in commands}
    assert "Fits: " in answers[commands[1]]
    is_trained(tmp_path / "runs" / "mine")
    assert "Ten minutes." in answers[commands[-1]]
    assert shown(Forked(lambda: exec(use, {}), tmp_path, os.environ)).strip()


def shown(child: Forked) -> str:
    """What a child that must succeed wrote to its standard output."""
    out, error = child.communicate()
    assert child.returncode == 0, f"{out}\n{error}"
    return out


def said(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Standard output of a command that must succeed."""
    outcome = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert outcome.returncode == 0, f"{outcome.stdout}\n{outcome.stderr}"
    return outcome.stdout


def imports_anew(lines: str) -> None:
    """Run imports where neither `trl` nor `wishbone` was imported; both then have the class that they name."""
    for name in [name for name in sys.modules if name.partition(".")[0] in {"trl", "wishbone"}]:
        del sys.modules[name]
    from transformers.quantizers import auto

    for registry in (auto.AUTO_QUANTIZATION_CONFIG_MAPPING, auto.AUTO_QUANTIZER_MAPPING):  # each takes a name once
        for name in [name for name in registry if name.startswith("wishbone")]:
            del registry[name]
    names: dict[str, Any] = {}
    exec(lines, names)
    ours, theirs = (importlib.import_module(name).DPOTrainer for name in ("wishbone", "trl"))
    assert theirs is names["DPOTrainer"] is ours is not None


@pytest.mark.slow
def test_migration_takes_three_lines(tmp_path: Path):
    imports = blocks("Use it from TRL or Unsloth code", "python")
    assert [len([line for line in lines.splitlines() if line]) for lines in imports] == [3, 3]
    for lines in imports:
        shown(Forked(functools.partial(imports_anew, lines), tmp_path, os.environ))


def suite_row(kind: str, system: str, case: str) -> dict[str, Any]:
    """The one result of the H200 suite for a system and a case."""
    rows = json.loads((RESULTS / "suite-h200.json").read_text())["results"]
    wanted = (kind, "8b", system, case)
    (row,) = [row for row in rows if (row["kind"], row["size"], row["system"], row["case"]) == wanted]
    return row


def table() -> list[list[str]]:
    """Cells of the rows of the table of measurements."""
    rows = re.findall(r"^\| (.*) \|$", TEXT.partition("\n## Measured\n")[2], re.MULTILINE)
    return [row.split(" | ") for row in rows if not row.startswith("Machine")]


@pytest.mark.parametrize(
    ("row", "ours", "theirs"),
    [
        (0, "wishbone-bf16", "unsloth-bf16"),
        (1, "wishbone-fp8", "unsloth-bf16"),
        (2, "wishbone-nf4-14gib", "unsloth-nf4"),
    ],
)
def test_speeds_in_the_table_were_measured(row: int, ours: str, theirs: str):
    cells = table()[row]
    speeds = []
    for cell, system in zip(cells[1:3], (ours, theirs), strict=True):
        measured = suite_row("throughput", system, "ultrafeedback:8")
        speeds.append(measured["pairs_per_s"])
        assert cell.endswith(f"{measured['pairs_per_s']:.2f} pairs/s, {measured['peak_gib']:.1f} GiB")
    assert cells[3] == f"{speeds[0] / speeds[1]:.2f} times the speed"


def test_the_longest_pair_in_the_table_was_measured():
    lengths = [suite_row("longest", name, "24 GiB")["tokens"] for name in ("wishbone-nf4-small", "unsloth-nf4")]
    ours, theirs, factor = table()[3][1:]
    assert ours == f"{lengths[0]:,} tokens a sequence"
    assert theirs == f"Unsloth: {lengths[1]:,}"
    assert factor == f"{lengths[0] / lengths[1]:.2f} times the length"


def test_the_row_of_the_cpu_was_measured():
    theirs, ours = json.loads((RESULTS / "cpu-trl-1.16.json").read_text())["results"]
    assert len(table()) == 5 and ours["system"] == "wishbone-f32"
    assert table()[4][1:] == [
        f"{ours['pairs_per_s']} pairs/s, {ours['peak_gib']} GiB",
        f"TRL {theirs['versions']['trl']}: {theirs['pairs_per_s']} pairs/s, {theirs['peak_gib']} GiB",
        f"{ours['pairs_per_s'] / theirs['pairs_per_s']:.2f} times the speed",
    ]
