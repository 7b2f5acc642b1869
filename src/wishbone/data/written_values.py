"""Messages and lists that stand in a cell as text: as JSON, or as Python prints them.

A CSV file has only text, and pandas writes a list of messages there as Python prints it. Such a cell is read as what it
says. One that looks like messages and cannot be read is refused: trained as text, a model would learn to write brackets
and quotation marks.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from wishbone.data.json_text import MOST_DEPTH, NotJsonError, parse_json
from wishbone.data.messages import ROLES, Misfit

LONGEST_LITERAL = 2**20
"""Most characters of a Python literal that is parsed; its syntax tree takes up to 500 bytes a character."""

_BEGINNING = re.compile(
    r"\s*(?:array\(\s*)?\[?\s*\{\s*(?P<quote>['\"])(?P<key>role|content|from|value|tool_calls|messages)(?P=quote)\s*:"
)
_OTHER_BEGINNING = re.compile(r"\s*(?:array\(\s*)?[\[(]?\s*(?:\{\s*['\"]|OrderedDict\()")
_ROLE, _CONTENT = (re.compile(rf"['\"](?:{names})['\"]\s*[:,]") for names in ("role|from", "content|value|tool_calls"))
"""Messages whose first key is another one (`name`, `id`, `weight`)."""
_NOT_A_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
"""Errors of `ast.literal_eval` for a text that is no literal, or nests too deeply."""


def read_structure(value: str) -> Any:
    """The list or object that a text writes in JSON or as Python prints it; tuples become lists.

    Raises:
        Misfit: the text is neither, is longer than `LONGEST_LITERAL` (and not JSON), or nests more than `MOST_DEPTH`
            levels deep.
    """
    try:
        found = parse_json(value)
        return parse_json(found) if isinstance(found, str) else found
    except NotJsonError:
        pass
    if len(value) > LONGEST_LITERAL:
        raise Misfit(f"is text of {len(value)} characters that looks like a list but is not JSON; write it as JSON")
    try:
        return _plain(ast.literal_eval(value.strip()))
    except _NOT_A_LITERAL:
        raise Misfit(
            "is text that looks like a list or an object, but is neither JSON nor what Python prints for one "
            "(NumPy prints lists without commas); write it as JSON"
        ) from None


def looks_structured(value: str) -> bool:
    """Whether a text begins like a list or an object, in JSON (perhaps twice) or as Python or NumPy print it."""
    return value.lstrip().startswith(("[", "{", "array(", "(", "OrderedDict(", '"[', '"{'))


def read_messages(value: str) -> Any:
    """The messages that a text writes; the text itself if it writes none.

    A list counts as messages if every item has role and content (or tool_calls), or from and value; one object if its
    role is also known, or if it has a list `messages`.

    Raises:
        Misfit: the text begins as messages do and cannot be read.
    """
    if value.lstrip().startswith('"') and (inner := _text_within(value)) is not None:
        value = inner  # JSON that was written as JSON once more
    if not _begins_like_messages(value):
        return value
    found = read_structure(value)
    if isinstance(found, Mapping):
        known = found.get("role", found.get("from")) in ROLES if _is_message(found) else False
        return found if known or isinstance(found.get("messages"), list) else value
    return found if isinstance(found, list) and found and all(map(_is_message, found)) else value


def _text_within(value: str) -> str | None:
    """The messages that a JSON string holds, as text; None if it holds none."""
    if not value.lstrip(' \t\r\n"').startswith(("[", "{")):
        return None
    try:
        inner = parse_json(value)
    except NotJsonError:
        return None
    return inner if isinstance(inner, str) and _begins_like_messages(inner) else None


def _begins_like_messages(value: str) -> bool:
    found = _BEGINNING.match(value)
    if not found:
        whole = _OTHER_BEGINNING.match(value) and value.rstrip().endswith(("]", "}", ")"))
        return bool(whole and _ROLE.search(value) and _CONTENT.search(value))
    partners = {"role": ("content", "tool_calls"), "from": ("value",), "value": ("from",), "messages": ("role", "from")}
    return any(partner in value for partner in partners.get(found["key"], ("role",)))


def _is_message(item: Any) -> bool:
    if not isinstance(item, Mapping):
        return False
    return bool("role" in item and item.keys() & {"content", "tool_calls"}) or {"from", "value"} <= item.keys()


def _plain(value: Any, depth: int = 0) -> Any:
    """The same with lists instead of tuples; raises ValueError for what JSON does not have."""
    if depth > MOST_DEPTH:
        raise ValueError("nests too deeply")
    match value:
        case list() | tuple():
            return [_plain(item, depth + 1) for item in value]
        case dict():
            return {key: _plain(item, depth + 1) for key, item in value.items()}
        case None | bool() | int() | float() | str():
            return value
    raise ValueError("not a value of JSON")
