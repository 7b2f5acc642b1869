"""Write builder/data: what the configuration builder in JavaScript shares with Python, as scripts that a page can load.

    python scripts/generate_builder_data.py [--check]

The builder runs in Node and in a page opened from a file, where nothing can be fetched. So the JSON of the package (the
rules, the templates of what is written, GPUs, shapes of models) and what else both must agree on (the schema of a
situation, the sources of the advice) become scripts that define one constant each. With `--check` nothing is written,
and the exit status is 1 if a file is not what it would be.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wishbone.config.schema import RunConfig
from wishbone.planning.situation import Situation

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "wishbone"
DATA = ROOT / "builder" / "data"

SCRIPT = """\
"use strict";
/* {meaning} Written by scripts/generate_builder_data.py. */
{{
  const {name} = {value};
  if (typeof module === "undefined") globalThis.wishbone = {{ ...globalThis.wishbone, {name} }};
  else module.exports = {{ {name} }};
}}
"""


def packaged(path: str) -> Callable[[], Any]:
    """Return a function that reads a JSON file of the package."""
    return lambda: json.loads((PACKAGE / path).read_text(encoding="utf-8"))


def sources() -> dict[str, dict[str, str]]:
    """Citation and address of each source in references/README.md, by the key that rules name it with."""
    text = (ROOT / "references" / "README.md").read_text(encoding="utf-8")
    found = {}
    for key, body in re.findall(r"^### `([\w.-]+)`\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL):
        citation = " ".join(body.strip().split("\n\n")[0].split())
        address = re.search(r"\((https://[^\s)]+)\)", citation)
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", citation).replace("`", "")
        found[key] = {"title": title.removesuffix("."), "address": address[1] if address else ""}
    return found


PARTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "rules": ("The rules of the advice.", packaged("config/rules.json")),
    "targets": ("Templates of what is written for each target.", packaged("config/targets.json")),
    "gpus": ("GPUs by name.", packaged("planning/gpus.json")),
    "models": ("Shapes of well-known models by name.", packaged("planning/models.json")),
    "situationSchema": ("What a person answers, as JSON Schema.", Situation.model_json_schema),
    "runSchema": ("What a configuration may hold, as JSON Schema.", RunConfig.model_json_schema),
    "sources": ("Sources of the advice by key.", sources),
}


def file_of(name: str) -> str:
    """Return the file of a part, in snake case."""
    return re.sub(r"(?=[A-Z])", "_", name).lower() + ".js"


def render(name: str) -> str:
    """Return the script that defines a part."""
    meaning, make = PARTS[name]
    value = json.dumps(make(), indent=1, ensure_ascii=True)
    return SCRIPT.format(name=name, meaning=meaning, value=value)


def main(arguments: list[str]) -> int:
    """Write the scripts, or only look at them, and return the exit status."""
    stale = []
    for name in PARTS:
        path = DATA / file_of(name)
        text = render(name)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if "--check" not in arguments:
                DATA.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"builder/data/{path.name} {'is stale: run this script' if '--check' in arguments else 'written'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
