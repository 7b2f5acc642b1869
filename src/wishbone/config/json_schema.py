"""The JSON Schema of a run's YAML file, for editors that complete and check it while it is written.

`run.schema.json` lies beside this module and is made from the typed configuration (`scripts/write_schema.py`); a test
fails while it is stale. Editors with a YAML language server (VS Code, Neovim, JetBrains, Zed) find it by the first line
of a file, which `wishbone init` writes.
"""

from __future__ import annotations

import json
from pathlib import Path

from wishbone.config.schema import RunConfig

SCHEMA = Path(__file__).with_name("run.schema.json")


def schema_text() -> str:
    """Return the schema as the file holds it."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A run of Wishbone",
        **{name: value for name, value in RunConfig.model_json_schema().items() if name != "title"},
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def editor_line() -> str:
    """Return the comment that names the schema of the installed package, as a line of YAML."""
    return f"# yaml-language-server: $schema={SCHEMA.resolve().as_uri()}\n"
