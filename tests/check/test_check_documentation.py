"""docs/check.md shows what the program prints, and lists every finding."""

from __future__ import annotations

import os
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from forked import forked_command

from wishbone.check.kinds import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "check.md"
TEXT = PAGE.read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(kind, rest.strip(), text) for kind, rest, text in FENCE.findall(TEXT)]
SHOWN = [(sh, text) for (kind, _, sh), (after, _, text) in pairwise(BLOCKS) if (kind, after) == ("sh", "text")]


def printed(command: str, folder: Path) -> str:
    """What a command of the page prints, without the spaces at the ends of lines; its data are those of the page."""
    for _, name, text in BLOCKS:
        if name:
            (folder / name).write_text(text, encoding="utf-8")
    program, *arguments = shlex.split(command)
    assert program == "wishbone"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    environment.pop("COLUMNS", None)
    child = forked_command(arguments, folder, environment)
    out, error = child.communicate()
    assert child.returncode == 1, error
    return "".join(f"{line.rstrip()}\n" for line in out.splitlines())


@pytest.mark.slow
@pytest.mark.documents
def test_the_first_example_is_what_the_program_prints(tmp_path: Path) -> None:
    command, text = SHOWN[0]
    assert printed(command, tmp_path) == text
    assert len((tmp_path / "clean.jsonl").read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.documents
def test_the_example_with_a_model_is_what_the_program_prints(tmp_path: Path, smollm2: object) -> None:
    command, text = SHOWN[1]
    assert "--model" in command
    assert text.rstrip() in printed(command, tmp_path)


@pytest.mark.documents
def test_every_finding_is_in_the_table() -> None:
    assert len(SHOWN) == 2
    listed = re.findall(r"^\| (.+?) \| (problem|warning|note) \| (.+?) \| (.+?) \| (yes|no) \|$", TEXT, re.MULTILINE)
    kinds = [(k.label, k.severity, k.why, k.remedy, "yes" if k.dropped else "no") for k in KINDS.values()]
    assert listed == kinds
