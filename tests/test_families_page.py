"""docs/families.md is written by its script, from what was run, and a family is run as it says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.documents
ROOT = Path(__file__).parent.parent
KEPT = json.loads((ROOT / "docs" / "families.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "sweep_families.py"))


def test_the_table_is_what_was_run(script: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert script["table"](KEPT) in page, "run python scripts/sweep_families.py"


@pytest.mark.slow
@pytest.mark.parametrize(("family", "path"), [("llama", "fast"), ("bart", "plain")])
def test_a_family_is_trained_and_compared(script: dict[str, Any], family: str, path: str) -> None:
    models = [script["built"](family, "causal", seed) for seed in (0, 1)]
    found = script["trained"](*models)
    assert found["path"] == path and found["difference"] <= script["EXACT"]
    assert (found["reason"] is None) == (path == "fast")
