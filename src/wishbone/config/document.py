"""YAML text as plain values, with the line of every key.

A configuration needs only mappings, lists and scalars. This module reads the parser's events instead of building
objects, so it can enforce that: text nests at most `MAX_DEPTH` deep, aliases (with which a few lines can stand for
billions of values) and tags (which name types) are refused, and a key that is given twice is reported.
Scalars follow the YAML 1.2 core schema: `1e-5` is a number and `no` is text. In YAML 1.1 it is the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from wishbone.errors import RequestError

MAX_CHARACTERS = 262_144
MAX_DEPTH = 8
Path = tuple[str | int, ...]

FLOAT = re.compile(r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)", re.ASCII)
INTEGER = re.compile(r"[-+]?(?:0|[1-9]\d{0,3999})", re.ASCII)
WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True)
class Document:
    """Values of a YAML text.

    Attributes:
        value: dict, list, str, int, float, bool or None.
        lines: 1-based line of each key or list item, by its path from the root.
        problems: a sentence for each key that is given twice.
    """

    value: Any
    lines: dict[Path, int]
    problems: list[str]


@dataclass
class _Frame:
    """A mapping or list that is still being read."""

    container: dict[str, Any] | list[Any]
    path: Path
    key: str | None = None


def show(value: Any) -> str:
    """A value for a message: on one line, at most 80 characters, control characters escaped."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = "a mapping" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def show_path(path: object) -> str:
    """A path for a message: never shortened, control characters escaped."""
    return repr(str(path))


def plain_value(text: str) -> Any:
    """The value of an unquoted scalar: None, bool, int or float, otherwise the text itself."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text


def read_document(text: str) -> Document:
    """Parse one YAML document. An empty one has the value None.

    Raises:
        RequestError: `text` is longer than `MAX_CHARACTERS`, is not YAML, nests too deep, contains half a surrogate
            pair, or uses aliases, tags or several documents. Keys given twice are in `Document.problems` instead.
    """
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"the text has {len(text)} characters; a configuration has at most {MAX_CHARACTERS}")
    root: list[Any] = []
    frames = [_Frame(root, ())]
    lines: dict[Path, int] = {}
    problems: list[str] = []
    for event in _events(text):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise RequestError(f"line {line}: an alias (*{event.anchor:.40}) is not accepted; write the value out")
        if isinstance(event, yaml.DocumentStartEvent) and root:
            raise RequestError(f"line {line}: a second document begins here; keep one document in the file")
        if isinstance(event, yaml.CollectionEndEvent):
            frames.pop()
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            continue
        if event.tag not in (None, "!"):
            raise RequestError(f"line {line}: the tag {show(event.tag)} is not accepted; write the plain value")
        if isinstance(event, yaml.ScalarEvent) and _has_surrogate(event.value):
            event.value = event.value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
            if _has_surrogate(event.value):  # a single one; JSON writes a character above U+FFFF as a pair
                raise RequestError(
                    f"line {line}: {show(event.value)} contains half a surrogate pair; write the character itself"
                )
        frame = frames[-1]
        if isinstance(frame.container, dict) and frame.key is None:
            frame.key = _key(event, line)
            path = (*frame.path, frame.key)
            if path in lines:
                name = ".".join(map(str, path))
                name = name if name.isprintable() else show(name)
                problems.append(f"{name} (line {line}): given twice, first on line {lines[path]}; keep one of them")
            lines[path] = line
            continue
        value = _begin(event)
        if isinstance(frame.container, list):
            path = (*frame.path, len(frame.container)) if len(frames) > 1 else ()
            frame.container.append(value)
        else:
            path = (*frame.path, str(frame.key))
            frame.container[str(frame.key)] = value
            frame.key = None
        lines.setdefault(path, line)
        if isinstance(value, dict | list):
            frames.append(_Frame(value, path))
        if len(frames) > MAX_DEPTH:
            raise RequestError(
                f"line {line}: values nest more than {MAX_DEPTH - 1} levels deep; write sections of plain values"
            )
    return Document(root[0] if root else None, lines, problems)


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise RequestError(f"{where}this is not YAML ({reason}); check indentation, quotes and colons there") from error
    except yaml.YAMLError as error:
        reason = str(error).partition("\n")[0]
        raise RequestError(f"this is not YAML ({reason}); a configuration is UTF-8 text") from error
    except (ValueError, OverflowError) as error:  # the parser does not check \U escapes and %YAML versions
        raise RequestError(f"this is not YAML ({error}); check backslashes in quotes and the %YAML line") from error


def _key(event: yaml.Event, line: int) -> str:
    if isinstance(event, yaml.ScalarEvent):
        return str(event.value)
    raise RequestError(f"line {line}: a mapping or list is not accepted as a key; write key: value")


def _begin(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> Any:
    if isinstance(event, yaml.ScalarEvent):
        return plain_value(event.value) if event.implicit[0] else event.value
    return {} if isinstance(event, yaml.MappingStartEvent) else []
