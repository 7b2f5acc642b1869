"""Write builder/data: what the configuration builder in JavaScript takes from Python, as scripts that a page can load.

    python scripts/generate_builder_data.py [--check]

The builder runs in Node and in a page opened from a file, where nothing can be fetched. So each part becomes a script
that defines one constant: the package's JSON files (rules, templates, GPUs, shapes of models), the schemas, the sources
of the advice, and the constants of the modules that `builder/SHARED.md` lists. With `--check` nothing is written, and
exit status 1 says that a file is stale.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from wishbone.config.explain import accepted
from wishbone.planning.situation import Situation, flag

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

CONSTANTS = {
    "cli.init": ("COMMANDS", "OF_SCRIPTS", "STANDARD_OUTPUT", "SUFFIXES", "WITHOUT_GPU"),
    "config.document": ("FLOAT", "INTEGER", "WORDS"),
    "config.emit": (
        "ESCAPES", "JSON_WORDS", "PLAIN", "PLAIN_FIRST", "PYTHON_WORDS", "WHOLE", "WIDTH", "WORDS",
    ),
    "config.schema": ("EMBEDDED_MODEL",),
    "config.targets": ("AS_ASKED", "Format"),
    "config.written_numbers": (
        "COUNTED", "DIGITS", "FRACTION", "GROUPED", "MEASURED", "OF_TEN", "PERCENT", "THOUSANDS",
    ),
    "engine.execution": ("RECOMPUTED_HEAD_CHUNK", "SHRINK", "SMALL_HEAD_CHUNK", "SMALL_TILE"),
    "engine.fitting": ("LEAST_PROBE", "MOST_ROW_TOKENS", "PROBE_TOKENS", "SPARE"),
    "planning.alternatives": ("SHORTEST",),
    "planning.budget": ("ROW_TOKENS", "SHARE_OF_FREE_MEMORY"),
    "planning.facts": ("FILE_FORMATS", "FULL_ROW", "LEAST", "ROOMY"),
    "planning.gpus": (
        "BF16_FROM", "COUNTED", "FORM", "FP8_FROM", "INT8_FROM", "MEMORY", "MUCH_FASTER", "NEAR", "NOT_SUPPORTED",
        "SAID_AROUND", "SIGNED", "SERIES", "SIZE", "SOLD", "SPELLED",
    ),
    "planning.expert_time": ("ADAPTED", "CODE_BYTES", "TILE", "TURNED"),
    "planning.host_time": ("AGAIN", "LAYER", "PARAMETER"),
    "planning.known_models": ("FORMS",),
    "planning.memory": (
        "COPYING", "CONTEXT", "EIGHT_BITS", "GIB", "HOLES", "LIBRARY_WORKSPACE", "MIB", "MemoryPlan", "NF4_BYTES",
        "PROCESS", "STATE_ELEMENTS",
    ),
    "planning.mixers": (
        "DELTA_HOST", "KEPT_OF_MIXER", "LETTERS", "MAMBA_HOST", "MOST_STATE_BYTES", "RECURRENT_TYPES", "SCAN_CHUNK",
    ),
    "planning.model_shape": (
        "EXPERTS", "FOUR_NORMS", "FUSED", "GATED_QUERIES", "HEAD_NORMS", "INSTEAD", "LINEAR_EXPERTS", "ModelShape",
        "ONE_PART", "ONLY_MAMBA", "OTHER_NAMES", "QUERY_KEY_VALUE_BIAS", "TIED",
    ),
    "planning.room": ("LONGEST",),
    "planning.run_plan": ("DTYPES",),
    "planning.sharded": ("MASTER_BYTES", "NVLINK_RATE", "WITHOUT_COPY"),
    "planning.situation": ("NO_GPU",),
    "planning.step_time": ("FULL_ROW", "LOGITS", "SCAN_TRAFFIC", "TRAFFIC", "YARDSTICK"),
}  # fmt: skip
"""Names that the builder reads, by module of the package."""


def packaged(path: str) -> Callable[[], Any]:
    """Return a function that reads a JSON file of the package."""
    return lambda: json.loads((PACKAGE / path).read_text(encoding="utf-8"))


def constants() -> dict[str, dict[str, Any]]:
    """Return the values of `CONSTANTS`, and what Python's repr writes for letters with an escape of their own."""
    found: dict[str, dict[str, Any]] = {"repr": {"ESCAPES": {letter: repr(letter)[1:-1] for letter in "\\\n\r\t"}}}
    for module, names in CONSTANTS.items():
        loaded = import_module(f"wishbone.{module}")
        found[module] = {name: plain(getattr(loaded, name)) for name in names}
    return found


def plain(value: Any) -> Any:
    """Return a constant as JSON has it: sets as sorted lists, patterns and sets of letters as text.

    A dataclass becomes the defaults of its fields, in camel case, a `Literal` the list of its values, and an infinite
    float or NaN the text that Python writes for it.
    """
    if isinstance(value, type) and is_dataclass(value):
        return {camel(field.name): plain(field.default) for field in fields(value) if field.default is not MISSING}
    if is_dataclass(value):
        return {camel(field.name): plain(getattr(value, field.name)) for field in fields(value)}
    if choices := get_args(value):
        return list(choices)
    if isinstance(value, re.Pattern):
        return value.pattern
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, frozenset):
        ordered = sorted(value)
        return "".join(ordered) if all(len(item) == 1 for item in ordered) else ordered
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def camel(name: str) -> str:
    """Return a name of Python as JavaScript spells it."""
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)


def situation_schema() -> dict[str, Any]:
    """Return the schema of a situation; each field has its flag, and what it accepts in words."""
    schema = Situation.model_json_schema()
    for name, field in schema["properties"].items():
        field |= {"flag": flag(name), "accepted": accepted(field)}
        if "items" in field:
            field["items"]["accepted"] = accepted(field["items"])
    return schema


def sources() -> dict[str, dict[str, str]]:
    """Return citation and address of each source in references/README.md, by the key that rules name it with."""
    text = (ROOT / "references" / "README.md").read_text(encoding="utf-8")
    found = {}
    for key, body in re.findall(r"^### `([\w.-]+)`\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL):
        citation = " ".join(body.strip().split("\n\n")[0].split())
        address = re.search(r"\((https://[^\s)]+)\)", citation)
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", citation).replace("`", "")
        found[key] = {"title": title.removesuffix("."), "address": address[1] if address else ""}
    return found


PARTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "constants": ("Constants of the Python package, by module.", constants),
    "rules": ("The rules of the advice.", packaged("config/rules.json")),
    "targets": ("Templates of what is written for each target.", packaged("config/targets.json")),
    "gpus": ("GPUs by name.", packaged("planning/gpus.json")),
    "models": ("Shapes of well-known models by name.", packaged("planning/models.json")),
    "situationSchema": ("What a user answers, as JSON Schema.", situation_schema),
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
    """Write the scripts, or only check them, and return the exit status."""
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
