"""The JSON Schema for editors is that of the typed configuration."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from wishbone.config.json_schema import SCHEMA, editor_line, schema_text
from wishbone.config.load import parse_config
from wishbone.config.schema import RunConfig

SCRIPT = Path(__file__).parents[2] / "scripts" / "write_schema.py"


def test_the_file_is_current():
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "run python scripts/write_schema.py"


def test_a_stale_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(script["main"].__globals__, "SCHEMA", tmp_path / "run.schema.json")
    monkeypatch.setattr("sys.argv", ["write_schema.py", "--check"])
    assert script["main"]() == 1
    monkeypatch.setattr("sys.argv", ["write_schema.py"])
    assert script["main"]() == 0
    monkeypatch.setattr("sys.argv", ["write_schema.py", "--check"])
    assert script["main"]() == 0


def test_every_setting_is_described():
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for section, reference in schema["properties"].items():
        name = reference["$ref"].rpartition("/")[2]
        own = schema["$defs"][name]
        assert own["additionalProperties"] is False
        kind = RunConfig.model_fields[section].annotation
        assert kind is not None and set(own["properties"]) == set(kind.model_fields)
        assert all(setting["description"] for setting in own["properties"].values())


def test_the_line_is_a_comment():
    assert editor_line().startswith("# ") and editor_line().count("\n") == 1
    assert parse_config(f"{editor_line()}model: {{name: m}}\ndata: {{train: d}}\n").model.name == "m"
