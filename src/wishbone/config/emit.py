"""Plain values as text: numbers, quoted strings, YAML, JSON. Python and JavaScript write the same bytes.

Documents are mappings of names to values or to mappings of names to values; names are plain words. Values are numbers,
text, true, false, null, and lists of values or of mappings.

Numbers. Whole numbers below 1e16 are written with digits only. Other numbers are the shortest digits that read back as
the same double: from 1e-4 to 1e16 with a decimal point, otherwise with an exponent without plus sign or leading zeros:
5e-6, 1.5e-7, 1e20. Readers of YAML 1.1 take 5e-6 for text, so in YAML it gets a point and a sign: 5.0e-6, 1.0e+20.

Text. In YAML a string has no quotes if it begins with a letter or a slash, contains only ASCII letters, digits and
`_ - . /`, and is not a word that YAML 1.1 reads as something else. Every other string, and every string in JSON and
Python, is quoted: double quotes; \\ and " after a backslash; \\b \\f \\n \\r \\t; printable ASCII unchanged; the rest
as \\uXXXX in lower case, above U+FFFF as \\UXXXXXXXX, in JSON as a surrogate pair. So the text is all ASCII, and quoted
text is the same literal in YAML and in Python.

Layout. Two spaces per level, one entry per line, lists on one line; a final line break. Comments are broken at spaces
into lines of at most `WIDTH` characters if possible; characters that are not printable ASCII are escaped in them.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable, Mapping
from typing import Any

PLAIN_FIRST = frozenset(string.ascii_letters + "/")
PLAIN = frozenset(string.ascii_letters + string.digits + "_-./")
WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
WHOLE = 1e16
WIDTH = 100

ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def number_text(number: float) -> str:
    """A finite number as it is written in reasons, JSON and Python."""
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number")
    if number == math.floor(number) and abs(number) < WHOLE:
        return str(int(number))
    digits, mark, exponent = repr(float(number)).partition("e")
    return f"{digits}e{int(exponent)}" if mark else digits


def yaml_number(number: float) -> str:
    """A finite number that readers of YAML 1.1 and 1.2 read as the same number."""
    digits, mark, exponent = number_text(number).partition("e")
    if not mark:
        return digits
    return f"{digits if '.' in digits else digits + '.0'}e{'' if exponent.startswith('-') else '+'}{exponent}"


def quoted(text: str) -> str:
    """Text in double quotes, all ASCII; a literal of YAML and of Python."""
    return f'"{"".join(map(_letter, text))}"'


def yaml_string(text: str) -> str:
    """Text as YAML, without quotes if that is safe."""
    plain = text[:1] in PLAIN_FIRST and PLAIN.issuperset(text) and text.lower() not in WORDS
    return text if text and plain else quoted(text)


def _letter(letter: str) -> str:
    if letter in ESCAPES:
        return ESCAPES[letter]
    if " " <= letter <= "~":
        return letter
    return f"\\u{ord(letter):04x}" if letter <= "\uffff" else f"\\U{ord(letter):08x}"


def python_literal(value: Any) -> str:
    """A value as Python source."""
    return _literal(value, PYTHON_WORDS, number_text, quoted)


def yaml_flow(value: Any) -> str:
    """A value as YAML on one line."""
    return _literal(value, JSON_WORDS, yaml_number, yaml_string)


def json_flow(value: Any) -> str:
    """A value as JSON on one line."""
    return _literal(value, JSON_WORDS, number_text, json.dumps)


JSON_WORDS = {None: "null", True: "true", False: "false"}
PYTHON_WORDS = {None: "None", True: "True", False: "False"}


def _literal(
    value: Any,
    words: Mapping[bool | None, str],
    number: Callable[[float], str],
    text: Callable[[str], str],
) -> str:
    def literal(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return words[value]
        if isinstance(value, str):
            return text(value)
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(literal, value))}]"
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{text(name)}: {literal(item)}' for name, item in value.items())}}}"
        return number(value)

    return literal(value)


def comment(text: str, indent: int = 0) -> list[str]:
    """A comment of YAML or Python as lines that begin with `indent` spaces and `# `."""
    start = " " * indent + "#"
    lines = [start]
    for word in "".join(letter if " " <= letter <= "~" else _letter(letter) for letter in text).split(" "):
        if lines[-1] != start and len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append(start)
        lines[-1] += f" {word}"
    return lines


def yaml_text(document: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """A document as YAML.

    Args:
        document: names and values, or names and mappings of these.
        comments: by dotted name, the comment above an entry; "" is the head of the document.
    """
    said = comments or {}
    lines = comment(said[""]) if "" in said else []
    for name, value in document.items():
        lines += comment(said[name]) if name in said else []
        if not isinstance(value, Mapping):
            lines.append(f"{name}: {yaml_flow(value)}")
            continue
        lines.append(f"{name}:")
        for key, item in value.items():
            path = f"{name}.{key}"
            lines += comment(said[path], 2) if path in said else []
            lines.append(f"  {key}: {yaml_flow(item)}")
    return "\n".join(lines) + "\n"


def json_text(document: Mapping[str, Any]) -> str:
    """A document as JSON."""
    entries = []
    for name, value in document.items():
        if isinstance(value, Mapping):
            inner = ",\n".join(f"    {json.dumps(key)}: {json_flow(item)}" for key, item in value.items())
            entries.append(f"  {json.dumps(name)}: {{\n{inner}\n  }}")
        else:
            entries.append(f"  {json.dumps(name)}: {json_flow(value)}")
    return "{\n" + ",\n".join(entries) + "\n}\n"
