"""builder/SHARED.md lists all that both languages compute, and everything else in builder/src is data from Python."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.documents
ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "builder" / "src"
LISTED = (ROOT / "builder" / "SHARED.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+\.js)` \| `(\w+)` \| (.+?) \| (.+?) \|$", LISTED, re.MULTILINE)
COLLECTING = {"builder.js", "main.js"}
"""Modules that only pass on what others export, or start a program."""
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no Node here: install nodejs, 18 or later")


@cache
def exported() -> set[tuple[str, str]]:
    """Module and name of everything that builder/src exports."""
    files = sorted(path.name for path in SOURCE.glob("*.js") if path.name not in COLLECTING)
    names_of = "process.argv.slice(2).map((file) => Object.keys(require(`${process.argv[1]}/${file}`)))"
    program = f"process.stdout.write(JSON.stringify({names_of}))"
    outcome = subprocess.run(["node", "-e", program, str(SOURCE), *files], capture_output=True, text=True, check=True)
    return {(file, name) for file, names in zip(files, json.loads(outcome.stdout), strict=True) for name in names}


def named(path: str) -> Any:
    """The Python object that a dotted name means: a module's attribute, or an attribute of that."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name is None or not path.startswith(error.name):
                raise
            continue
        return reduce(getattr, parts[length:], module)
    raise AssertionError(f"no module of {path} can be imported")


@needs_node
def test_every_export_is_listed_once():
    listed = [(file, name) for file, name, *_ in ROWS]
    assert len(listed) == len(set(listed))
    assert set(listed) == exported()


@pytest.mark.parametrize(("file", "name", "twin"), [row[:3] for row in ROWS if row[2] != "only here"])
def test_the_python_side_of_a_row_exists(file: str, name: str, twin: str):
    assert re.fullmatch(r"`[\w.]+`", twin), f"{file} {name}: a dotted name, or `only here`"
    assert named(twin.strip("`")) is not None


def test_few_functions_are_of_javascript_alone():
    assert {name for _, name, twin, _ in ROWS if twin == "only here"} == {"noting", "shapeFields"}


@needs_node
def test_what_is_exported_is_used():
    texts = {
        path: path.read_text(encoding="utf-8")
        for folder in ("src", "page")
        for path in (SOURCE.parent / folder).glob("*.js")
    }
    offered = (SOURCE / "builder.js").read_text(encoding="utf-8")
    for file, name in exported():
        if f'"./{file}"' in offered or name.endswith("Error"):  # of the package, or for those who catch it
            continue
        used = [path.name for path, text in texts.items() if path.name != file and re.search(rf"\b{name}\b", text)]
        assert used or file == "command.js", f"{file} exports {name}, and nothing uses it"


LITERAL = re.compile(
    r"^ {0,2}const ([A-Z][A-Z_0-9]*) = (?:[\d\"'\[{(-]|2 \*\*|new (?:Set|Map)\(\[[\d\"'])", re.MULTILINE
)


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*.js")), ids=lambda path: path.name)
def test_tables_and_limits_come_from_python(path: Path):
    found = set(LITERAL.findall(path.read_text(encoding="utf-8")))
    assert found == ({"ARITHMETIC"} if path.name == "rules.js" else set())  # functions by operator


def test_every_generated_constant_is_read():
    text = (ROOT / "builder" / "data" / "constants.js").read_text(encoding="utf-8")
    constants = json.loads(text[text.index("= {") + 2 : text.index(";\n  if (typeof")])
    sources = "\n".join(
        path.read_text(encoding="utf-8") for folder in ("src", "page") for path in (SOURCE.parent / folder).glob("*.js")
    )
    for module, names in constants.items():
        read = re.findall(rf"\{{([^{{}}]*)\}} = constants(?:\.{module}|\[\"{re.escape(module)}\"\])", sources)
        taken = {word for part in read for word in re.findall(r"\w+", part)}
        taken |= set(re.findall(rf"constants\[\"{re.escape(module)}\"\]\.(\w+)", sources))
        assert names.keys() <= taken, f"{module}: {sorted(names.keys() - taken)} are generated and not read"
