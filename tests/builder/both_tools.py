"""The builder in Python and in JavaScript, asked the same."""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path
from typing import NamedTuple

import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent.parent
PYTHON_TOOL = ROOT / "scripts" / "unsloth-dpo_tool.py"
JAVASCRIPT_TOOL = ROOT / "scripts" / "unsloth-dpo_tool.js"
IN_ONE_PROCESS = """
const { run } = require(process.argv[1]);
const asked = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const answers = asked.map((words) => {
  const said = { out: "", error: "" };
  const status = run(words, { out: (text) => { said.out += text; }, error: (text) => { said.error += text; } });
  return [status, said.out, said.error];
});
process.stdout.write(JSON.stringify(answers));
"""


class Answer(NamedTuple):
    """Exit status, standard output, standard error."""

    status: int
    text: str
    said: str


def in_python(asked: list[list[str]]) -> list[Answer]:
    """Answers of the tool in Python, in this process."""
    tool = typer.Typer(add_completion=False)
    tool.command()(runpy.run_path(str(PYTHON_TOOL))["build"])
    outcomes = [CliRunner().invoke(tool, words) for words in asked]
    return [Answer(outcome.exit_code, outcome.stdout, outcome.stderr) for outcome in outcomes]


def in_javascript(asked: list[list[str]]) -> list[Answer]:
    """Answers of the tool in JavaScript, in one process of Node."""
    command = ["node", "-e", IN_ONE_PROCESS, str(ROOT / "builder" / "src" / "command.js")]
    outcome = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    return [Answer(*answer) for answer in json.loads(outcome.stdout)]
