"""Commands and code in the documentation can be typed as they stand: commands, flags, settings and names exist.

The README, the tutorial and the skill are run by tests of their own; here every page is read, and nothing runs.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from wishbone.cli import app
from wishbone.cli.grid import grid
from wishbone.config.explain import sections
from wishbone.config.load import parse_config
from wishbone.planning.gpus import find_gpu

pytestmark = pytest.mark.documents
ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "skill/*.md", "references/*.md", "builder/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(wishbone [^`]+)`")
SMALLEST = "model: {name: smollm2-135m-instruct}\ndata: {train: pairs.jsonl}\n"
MEANT_WRONG = {"wishbone train run.yaml --learning-rate 1e-5"}
"""Commands that a page shows as wrong."""
PLACES = ("...", "[COMMAND]")


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return FENCED.findall(page.read_text(encoding="utf-8"))


def commands() -> Iterator[Any]:
    """Every command that a page shows: whole ones in blocks, and parts of one in the text."""
    for page in PAGES:
        for _, text in fences(page):
            for line in text.replace("\\\n", " ").splitlines():
                for command in re.findall(r"(?:^|[|] |\$ |srun )(wishbone [a-z].*|python -m benchmarks [a-z].*)", line):
                    yield pytest.param(command, True, id=f"{page.stem}: {command[:60]}")
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        for command in map(" ".join, map(str.split, INLINE.findall(text))):
            if command not in MEANT_WRONG and not any(place in command for place in PLACES):
                yield pytest.param(command, False, id=f"{page.stem}: {command[:60]}")


@cache
def program() -> Any:
    """The command line as click has it."""
    return typer.main.get_command(app)


def words_of(command: str) -> list[str]:
    """The words behind the program's name, without comments and what belongs to the shell."""
    lexer = shlex.shlex(re.sub(r"\$\w+", "2", command), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    ends = [index for index, word in enumerate(words) if word in {"|", "&", ">", ";"}]
    return words[1 : min(ends, default=len(words))]


@pytest.mark.parametrize(("command", "whole"), list(commands()))
def test_a_command_can_be_typed(command: str, whole: bool):
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", command.partition(" # ")[0])
    assert not set("[*?") & set(unquoted), f"a shell reads brackets and stars unless they are quoted: {command}"
    words = words_of(command)
    if command.startswith("python"):
        return has_flags(words[2], words[3:])
    name, *rest = words
    if name.startswith("-"):
        assert name == "--help" or any(name in option.opts for option in program().params), command
        return None
    assert name in program().commands, command
    parsed = program().commands[name]
    known = {option for parameter in parsed.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known, command
    if whole:
        parsed.make_context(name, rest, resilient_parsing=False)
    for flag, value in pairwise(rest):
        if flag == "--gpu" and value != "none":
            find_gpu(value)
    settings = [word for word in rest if re.match(rf"({'|'.join(sections())})\.\w+=", word)]
    for overrides in [one.overrides for one in grid(settings)] if name == "sweep" else [settings]:
        parse_config(SMALLEST, overrides)
    return None


def has_flags(benchmark: str, words: list[str]) -> None:
    """A benchmark of that name exists and reads these flags."""
    source = (ROOT / "benchmarks" / "commands" / f"{benchmark.replace('-', '_')}.py").read_text(encoding="utf-8")
    for word in words:
        assert not word.startswith("--") or f'"{word}"' in source or "add_options" in source, word


def programs() -> Iterator[Any]:
    """Python in blocks of its own, and what a shell hands to Python."""
    for page in PAGES:
        for language, text in fences(page):
            found = [text] if language == "python" else re.findall(r"^python - <<'END'\n(.*?)^END$", text, re.M | re.S)
            yield from (pytest.param(code, id=f"{page.stem}: {code.strip().splitlines()[0][:60]}") for code in found)


@pytest.mark.parametrize("code", list(programs()))
def test_names_and_arguments_in_code_exist(code: str):
    tree = ast.parse(code)
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "wishbone":
            module = importlib.import_module(str(node.module))
            known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = meaning(node.func, known)
        if called is None:
            continue
        parameters = inspect.signature(called).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        assert {keyword.arg for keyword in node.keywords if keyword.arg} <= set(parameters), ast.unparse(node)


def meaning(function: ast.expr, known: dict[str, Any]) -> Any:
    """What a call calls, where that is a name of Wishbone or an attribute of one."""
    if isinstance(function, ast.Name):
        return known.get(function.id)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in known:
        return getattr(known[function.value.id], function.attr)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_other_blocks_can_be_parsed(page: Path):
    for language, text in fences(page):
        if language == "yml":  # of other programs; those of runs are `yaml`
            assert isinstance(yaml.safe_load(text), dict)
        elif language == "json":
            decoder = json.JSONDecoder()
            rest = text.strip()
            while rest:  # one value, or one a line
                _, end = decoder.raw_decode(rest)
                rest = rest[end:].strip()
        elif language == "sh":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_pages_have_commands_and_code():
    assert len(list(commands())) > 120
    assert len(list(programs())) > 8


def test_the_plans_on_the_page_are_those_of_the_commands(monkeypatch: pytest.MonkeyPatch):
    page = (ROOT / "docs" / "plan-and-configure.md").read_text(encoding="utf-8").replace("\\\n", " ")
    shown = re.findall(r"^```text\n\$ (wishbone .*?)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [command.split()[1] for command, _ in shown] == ["init", "plan", "plan"]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a short path, which no line of a table breaks
        monkeypatch.chdir(folder)
        shutil.copy(ROOT / "examples" / "plain-answers" / "train.jsonl", "pairs.jsonl")
        for command, text in shown:
            outcome = CliRunner().invoke(app, shlex.split(command)[1:], env={"COLUMNS": "92"})
            said = " ".join(outcome.output.replace(str(Path.cwd()), "/data").split())
            for part in text.split("...\n"):
                assert " ".join(part.split()) in said, f"{command}\n{outcome.output}"
