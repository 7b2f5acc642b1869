"""The builder's data is generated from Python, and fresh."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "generate_builder_data.py"))
DATA = ROOT / "builder" / "data"
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no Node here: install nodejs, 18 or later")


@pytest.mark.parametrize("name", SCRIPT["PARTS"])
def test_generated_data_are_fresh(name: str):
    text = (DATA / SCRIPT["file_of"](name)).read_text(encoding="utf-8")
    assert text == SCRIPT["render"](name), "run python scripts/generate_builder_data.py"


def test_there_is_nothing_else():
    assert {path.name for path in DATA.iterdir()} == {SCRIPT["file_of"](name) for name in SCRIPT["PARTS"]}


@needs_node
@pytest.mark.parametrize("name", SCRIPT["PARTS"])
def test_node_reads_what_python_wrote(name: str):
    program = f"process.stdout.write(JSON.stringify(require({json.dumps(str(DATA / SCRIPT['file_of'](name)))}).{name}))"
    outcome = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    assert json.loads(outcome.stdout) == json.loads(json.dumps(SCRIPT["PARTS"][name][1]()))


def test_every_source_of_a_rule_is_there_with_title_and_address():
    rules = SCRIPT["PARTS"]["rules"][1]()["rules"]
    sources = SCRIPT["sources"]()
    assert {rule["source"] for rule in rules} <= sources.keys()
    assert all(source["title"] for source in sources.values())
    assert sum(bool(source["address"]) for source in sources.values()) > len(sources) / 2


def test_what_is_stale_is_seen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(SCRIPT["main"].__globals__, "DATA", tmp_path)
    assert SCRIPT["main"](["--check"]) == 1
    assert "builder/data/rules.js is stale" in capsys.readouterr().out
    assert SCRIPT["main"]([]) == 0
    assert SCRIPT["main"](["--check"]) == 0
