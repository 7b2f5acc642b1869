"""JSON from outside: parsed, or refused with a short reason, and checked before it is stored.

Python's parser raises four kinds of errors, and accepts values that cannot be stored or printed again: half of a
surrogate pair, infinity, integers of any size, lists nested a thousand levels deep.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date
from typing import Any

MOST_DEPTH = 64
"""Most levels to which a value of a row may nest. Tool descriptions in JSON Schema have about ten."""


class NotJsonError(ValueError):
    """The text cannot be read as JSON; the message begins with "is"."""


def parse_json(text: str | bytes, *, unique_keys: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        text: text, or bytes in UTF-8, UTF-16 or UTF-32.
        unique_keys: whether an object with a key twice is refused; Python keeps the last value and says nothing.

    Raises:
        NotJsonError: it is not JSON, not text, nested too deeply, has a key twice or thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_with_unique_keys if unique_keys else None)
    except NotJsonError:
        raise
    except UnicodeDecodeError as error:
        raise NotJsonError(f"is not UTF-8 text (byte {error.start + 1}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"character {error.pos + 1}"
        raise NotJsonError(f"is not JSON: {error.msg.removesuffix(' at')} at {place}{_remedy(error)}") from None
    except RecursionError:
        raise NotJsonError("is JSON nested too deeply") from None
    except ValueError:
        raise NotJsonError("is JSON with an integer that has too many digits to be read") from None


def _remedy(error: json.JSONDecodeError) -> str:
    """What is wrong with a text that people take for JSON, after a comma; empty where it is not known."""
    rest = error.doc[error.pos :].lstrip()
    match error.msg:
        case "Extra data" if rest.rstrip() == ",":
            return ", where a comma follows the object; in JSON Lines none does"
        case "Extra data" if rest.startswith("{"):
            return ", where a second object stands on the same line; each has a line of its own"
        case "Expecting value" if rest.startswith(("None", "True", "False", "nan")):
            return "; this is Python's writing, and JSON has null, true and false: json.dumps writes them"
        case "Expecting property name enclosed in double quotes" if rest.startswith("'"):
            return "; this is Python's writing: json.dumps writes JSON"
        case "Illegal trailing comma before end of object" | "Illegal trailing comma before end of array":
            return "; leave this comma out"
        case "Expecting property name enclosed in double quotes" | "Expecting value" if rest.startswith(
            ("}", "]")
        ) and error.doc[: error.pos].rstrip().endswith(","):
            return "; leave the comma before it out"
        case "Invalid control character at":
            return "; a line break or a tab within a text is written \\n or \\t"
    return ""


def _with_unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        keys = [key for key, _ in items]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise NotJsonError(f"is JSON in which an object has the key {twice!r:.40} twice")
    return found


def unstorable(value: Any, depth: int = 0) -> str | None:
    """Return why a value cannot be stored as JSON and read back (a text that continues its name); None if it can.

    Integers must fit into 64 bits, other numbers must be finite, texts must be encodable, keys must be texts.
    """
    if depth > MOST_DEPTH:
        return f"nests more than {MOST_DEPTH} levels deep"
    match value:
        case None | bool():
            return None
        case str():
            return None if value.isascii() or _is_encodable(value) else "contains half of a surrogate pair"
        case int():
            return None if -(2**63) <= value < 2**63 else "contains an integer beyond 64 bits"
        case float():
            return None if math.isfinite(value) else f"contains {value}, which is not a number in JSON"
        case Mapping():
            return next((why for k, v in value.items() if (why := _key(k) or unstorable(v, depth + 1))), None)
        case list():
            return next((why for item in value if (why := unstorable(item, depth + 1))), None)
        case date():
            return None  # stored as the milliseconds since 1970
    return f"contains a value of type {type(value).__name__}"


def _key(key: Any) -> str | None:
    return unstorable(key) if isinstance(key, str) else f"has a key that is not text ({key!r:.40})"


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
