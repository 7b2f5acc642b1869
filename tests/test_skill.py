"""The assistant skill is true: every command in it runs, in its order, and what it says of them holds."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import yaml

from wishbone.config.load import load_config
from wishbone.planning.situation import SYMPTOMS

pytestmark = pytest.mark.documents
ROOT = Path(__file__).parent.parent
SKILL = ROOT / "skill" / "SKILL.md"
TEXT = SKILL.read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


def words(command: str) -> list[str]:
    """A command with this Python and the paths of this checkout."""
    program, *rest = shlex.split(command)
    if program == "wishbone":
        return [sys.executable, "-m", "wishbone", *rest]
    return [sys.executable if program == "python" else program, str(ROOT / rest[0]), *rest[1:]]


def test_the_head_is_what_a_skill_has():
    _, head, body = TEXT.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields.keys() == {"name", "description"}
    assert re.fullmatch(r"[a-z0-9-]{1,64}", fields["name"])
    assert "Use it when" in fields["description"]
    assert len(fields["description"]) <= 1024
    assert body.lstrip().startswith("# ")


def test_every_symptom_and_every_command_is_taught():
    for symptom in SYMPTOMS:
        assert f"| `{symptom}` |" in TEXT
    used = {shlex.split(command)[1] for command in COMMANDS if command.startswith("wishbone ")}
    assert {"doctor", "init", "plan", "train", "report", "compare"} <= used
    named = set(re.findall(r"`wishbone (\w+)", TEXT))
    assert named <= used, "a command is named and not run"


def test_paths_that_are_named_are_there():
    for path in re.findall(r"`((?:builder|scripts|references|docs)/[\w./-]+)`", TEXT):
        assert (ROOT / path).exists(), path


@pytest.mark.long
@pytest.mark.slow
def test_every_command_runs(tmp_path: Path, smollm2: object):
    rows = ROOT / "examples" / "plain-answers" / "train.jsonl"
    with rows.open(encoding="utf-8") as lines:
        (tmp_path / "pairs.jsonl").write_text("".join(islice(lines, 16)), encoding="utf-8")
    shown = {}
    for command in COMMANDS:
        if command.startswith("node ") and not shutil.which("node"):
            continue
        environment = os.environ | {"COLUMNS": "120"}
        outcome = subprocess.run(
            words(command), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert outcome.returncode == 0, f"{command}\n{outcome.stdout}\n{outcome.stderr}"
        shown[command] = outcome.stdout
    for name in ("run.yaml", "second.yaml"):
        load_config(tmp_path / name)
    ast.parse((tmp_path / "train_unsloth.py").read_text())
    assert "model_name_or_path" in yaml.safe_load((tmp_path / "trl.yaml").read_text())
    assert (tmp_path / "runs" / "first" / "report.html").exists()
    plan = next(text for command, text in shown.items() if "--json" in command)
    assert json.loads(plan)
    files = [text for command, text in shown.items() if "unsloth-dpo_tool" in command]
    assert len(set(files)) == 1
    assert json.loads(files[0])["model"]["name"] == "Qwen/Qwen3-8B"
    first = load_config(tmp_path / "second.yaml")
    assert first.training.learning_rate <= 1e-5
