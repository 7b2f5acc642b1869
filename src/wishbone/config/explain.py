"""From validation errors to sentences: the place, the value, what is accepted, the remedy.

What a field accepts comes from the JSON Schema of `RunConfig`, so bounds and choices are stated once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import ValidationError

from wishbone.config.document import FLOAT, show
from wishbone.config.former_options import SETTINGS
from wishbone.config.other_names import KEYS, LLM_INT8, NO_LOSS, SECTIONS, VALUES
from wishbone.config.schema import RunConfig
from wishbone.config.written_numbers import number_meant

Where = Callable[[tuple[str, ...]], str]

_EXPLAINED = 100
"""Problems that get a sentence: more than fit a screen, and few enough that thousands of them take no time."""
_LONGEST_NAME = 80

_NUMBERS = {"integer", "number"}
_YES, _NO = {"yes", "true", "on", "y"}, {"no", "false", "off", "none", "n"}


@cache
def sections() -> dict[str, dict[str, Any]]:
    """JSON Schema of each field, by section and key."""
    schema = RunConfig.model_json_schema()
    return {
        name: schema["$defs"][field.annotation.__name__]["properties"]
        for name, field in RunConfig.model_fields.items()
        if field.annotation is not None
    }


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that `name` is most likely a misspelling of, or None."""
    known = {choice.lower().replace("-", "_"): choice for choice in choices}
    word = name.lower().replace("-", "_")
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    longer = [choice for choice in known if len(word) > 1 and choice.startswith(word)]
    found = close or (longer if len(longer) == 1 else [])
    return known[found[0]] if found else None


def accepted(schema: dict[str, Any]) -> str:
    """What a JSON Schema accepts, in words."""
    if "anyOf" in schema:
        one, *others = schema["anyOf"]
        same = len(others) == 1 and others[0].get("items") == one
        return f"{accepted(one)}, or a list of these" if same else ", or ".join(map(accepted, schema["anyOf"]))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    match schema["type"]:
        case "array":
            least = " of at least one" if schema.get("minItems") else ""
            return f"a list{least}, each item {accepted(schema['items'])}"
        case "object":
            return "a mapping of names"
        case "string":
            return "one line of text" if "pattern" in schema else "text"
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case kind:
            return ("a whole number" if kind == "integer" else "a number") + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']} to {schema['maximum']}"
    words = {
        "exclusiveMinimum": "above",
        "minimum": "of at least",
        "exclusiveMaximum": "below",
        "maximum": "of at most",
    }
    return " and".join(f" {word} {schema[key]}" for key, word in words.items() if key in schema)


def explain(
    error: ValidationError, where: Where, broken: Collection[tuple[str, ...]] = ()
) -> tuple[list[str], set[tuple[str, ...]]]:
    """Sentences for all errors, and the fields that they concern.

    Args:
        error: raised by `RunConfig`.
        where: returns where a path of the configuration was given, such as " (line 12)", or "".
        broken: fields that are already known to be wrong; a conflict that involves one of them gets no sentence.
    """
    items = [(item, tuple(str(part) for part in item["loc"][:2])) for item in error.errors(include_url=False)]
    fields = {path for item, path in items if item["type"] != "conflict"}
    unusable = fields | set(broken)
    indexed = {path for item, path in items if _index(item) is not None}
    sentences: dict[str, None] = {}
    for item, path in items:
        if path in indexed and _index(item) is None and isinstance(item["input"], list):
            continue  # an item of the list is named already
        if item["type"] != "conflict":
            told = len(sentences) < _EXPLAINED
            sentences[_sentence(item, path, where) if told else f"{_name(path)}{where(path)}"] = None
            continue
        for conflict in item["ctx"]["conflicts"]:
            paths = [(*path, *name.split(".")) for name in conflict.fields]
            place = next(filter(where, paths), paths[0])
            if unusable.isdisjoint(paths):
                sentences[f"{'.'.join(place)}{where(place)}: {conflict.text}"] = None
            fields.update(paths)
    return list(sentences), fields


def _name(path: tuple[str, ...]) -> str:
    plain = (part.isidentifier() and part.isascii() and len(part) <= _LONGEST_NAME for part in path)
    return ".".join(part if is_plain else show(part) for part, is_plain in zip(path, plain, strict=True))


def _sentence(item: Any, path: tuple[str, ...], where: Where) -> str:
    name, at, value = _name(path), where(path), item["input"]
    if item["type"] == "extra_forbidden":
        return f"{name}{at}: {_unknown(path, value)}"
    if len(path) < 2:
        meant = f"did you mean {KEYS[path[0]]}? Or write" if path[0] in KEYS else "write"
        return (
            f"{name}{at}: {show(value)} is not a section; {meant} its keys below it ({', '.join(sections()[path[0]])})"
        )
    schema = sections()[path[0]][path[1]]
    if item["type"] == "missing":
        return f"{name}: required, but missing. {schema['description']}"
    index = _index(item)
    spot = name if index is None else f"{name}[{index}]"
    default = f" (default: {show(schema['default'])})" if "default" in schema else ""
    return f"{spot}{at}: {show(value)} is not accepted. {_remedy(value, schema)}It takes {accepted(schema)}{default}"


def _index(item: Any) -> int | None:
    return next((part for part in item["loc"][2:] if isinstance(part, int)), None)


def _remedy(value: Any, schema: dict[str, Any]) -> str:
    branches = (schema, *schema.get("anyOf", []))
    kinds = {branch.get("type") for branch in branches}
    if isinstance(value, float) and value.is_integer() and kinds & _NUMBERS == {"integer"}:
        return f"Write {value:.0f}. " if abs(value) < 1e15 else ""
    choices = _choices(schema)
    word = _word(str(value))
    if switched := _switched(word, schema, kinds, choices):
        return switched
    if schema["title"].endswith((" Fraction", " Ratio")) and isinstance(value, int | float) and 1 <= value <= 100:
        return f"{value:g} % is {value / 100:g}. "
    if isinstance(value, list) and "array" not in kinds:
        return "Write one value, without brackets. "
    if word in LLM_INT8 and "int8" in choices:
        return (
            "Did you mean int8? It rounds rotated rows and is not LLM.int8 of bitsandbytes, which no setting has "
            "(FastLanguageModel has it: load_in_8bit). "
        )
    if not isinstance(value, str):
        return f"Did you mean {VALUES[word]}? " if VALUES.get(word) in choices else ""
    if "sigmoid" in choices and word in NO_LOSS:
        return f"{NO_LOSS[word]}. "
    parts = [part for part in re.split(r"[,+\s]+", value) if part]
    listed = show(f"[{','.join(parts)}]")
    if "array" in kinds and len(parts) > 1 and all(part in choices for part in parts):
        return f"Write a list in brackets, in quotes on a command line: {listed}. "
    of_texts = any(branch.get("items", {}).get("type") == "string" for branch in branches)
    if of_texts and parts and not nearest(value, choices):
        return f"Write a list in brackets, in quotes on a command line: {listed}. "
    if kinds & _NUMBERS and (number := number_meant(value, whole="number" not in kinds)):
        return f"Write {number}. "
    close = VALUES.get(word) if VALUES.get(word) in choices else nearest(value, choices)
    if close:
        return f"Did you mean {close}? "
    return "Write the number without quotes. " if FLOAT.fullmatch(value) or value.isdecimal() else ""


def _switched(word: str, schema: dict[str, Any], kinds: Collection[Any], choices: list[str]) -> str:
    """What to write for yes and no, where a field has another word for it; empty where it has none."""
    if "boolean" in kinds:
        return f"Write {str(word in _YES).lower()}. " if word in _YES | _NO else ""
    off = next((choice for choice in ("none", "off") if choice in choices), None)
    if word in _YES and off and schema.get("default") != off:
        return f"Did you mean {schema['default']}? "
    if word not in _NO:
        return ""
    if off:
        return f"Did you mean {off}? "
    if "null" in kinds:
        return "Write null for none. "
    empty = choices and "array" in kinds and not any(branch.get("minItems") for branch in schema.get("anyOf", [schema]))
    return "Write [] for none. " if empty else ""


def _choices(schema: dict[str, Any]) -> list[str]:
    branches = [schema, *schema.get("anyOf", [])]
    words = [word for branch in branches for word in branch.get("enum", [branch.get("const")])]
    return [word for word in dict.fromkeys(words) if word]


def _unknown(path: tuple[str, ...], value: Any) -> str:
    known = sections()
    if len(path) == 1 and isinstance(value, dict):
        keys = [setting_meant(str(key)) for key in value]
        close = nearest(path[0], known) or (keys[0] if len(keys) == 1 else None) or SECTIONS.get(_word(path[0]))
        hint = f"did you mean {close}?" if close else "leave it out."
        return f"no such section; {hint} The sections are {', '.join(known)}"
    inside = known.get(path[0], {}) if len(path) == 2 else {}
    word = _word(path[-1])
    elsewhere = _elsewhere()
    close = elsewhere.get(word) if word not in inside else None
    close = close or nearest(word, inside) or elsewhere.get(nearest(word, elsewhere) or "")
    hint = f"did you mean {close}?" if close else "leave it out."
    if word in SETTINGS and word not in elsewhere:
        hint = SETTINGS[word] if SETTINGS[word].endswith("?") else f"{SETTINGS[word]}."
    scope = f"{path[0]} takes {', '.join(inside)}" if inside else f"The sections are {', '.join(known)}"
    return f"no such key; {hint} {scope}"


def setting_meant(name: str, *, exactly: bool = False) -> str | None:
    """The setting, as `section.key`, that somebody means by a name; None where there is none like it.

    Args:
        name: a key with or without its section, in the words of this package or of another trainer; `-` is `_`.
        exactly: do not guess at misspellings.
    """
    section, _, key = _word(name).rpartition(".")
    inside, elsewhere = sections().get(SECTIONS.get(section, section), {}), _elsewhere()
    if key in inside:
        return f"{SECTIONS.get(section, section)}.{key}"
    if key in elsewhere or exactly:
        return elsewhere.get(key)
    return elsewhere.get(nearest(key, elsewhere) or "")


def _word(name: str) -> str:
    return name.lower().replace("-", "_")


def _elsewhere() -> dict[str, str]:
    """Settings as `section.key`, by their key and by the names that other trainers use."""
    return {key: f"{section}.{key}" for section, keys in sections().items() for key in keys} | KEYS
