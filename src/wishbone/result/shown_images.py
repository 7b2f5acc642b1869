"""Images that a question names: a word that begins with @ and names a file, as in `@cats/1.png What is it?`.

A name with spaces stands in quotes (`@"my cat.png"`). Other words with an @ are text.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from wishbone.data.images import read_image

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"})
"""Ends of names that are taken for images, whether or not there is such a file."""

_NAMED = re.compile(r'(?<!\S)@(?:"([^"]+)"|(\S+))')
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|data:image/", re.IGNORECASE)


def parts_of(question: str) -> list[dict[str, Any]]:
    """Return a question as parts of a message: texts, and the pictures (PIL) that it names, where it names them.

    Raises:
        RequestError: an image that it names cannot be read.
    """
    parts: list[dict[str, Any]] = []
    begin = 0
    for found in _NAMED.finditer(question):
        name, end = _image_named(found)
        if name is None:
            continue
        parts += _text(question[begin : found.start()])
        parts.append({"type": "image", "image": read_image(name)})
        begin = end
    return parts + _text(question[begin:])


def named_images(question: str) -> list[str]:
    """Return the images that a question names with an @."""
    return [name for found in _NAMED.finditer(question) if (name := _image_named(found)[0]) is not None]


def named_without_mark(question: str) -> list[str]:
    """Return the words of a question, without an @ before them, that are files of images."""
    words = [word.strip("'\"?!,;:()") for word in question.split() if not word.startswith("@")]
    return [word for word in words if _ends_as_image(word) and _is_file(word)]


def _image_named(found: re.Match[str]) -> tuple[str | None, int]:
    """The image that a word with an @ names, or None, and where its name ends in the question."""
    if found[1] is not None:
        return found[1], found.end()
    name, bare = found[2], found[2].rstrip("?!.,;:)")
    for one in (name, bare):
        if _ADDRESS.match(one) or _ends_as_image(one) or (one and _is_file(one)):
            return one, found.end() - len(name) + len(one)
    return None, found.end()


def _text(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text.strip()}] if text.strip() else []


def _ends_as_image(name: str) -> bool:
    return Path(name).suffix.lower() in ENDINGS


def _is_file(name: str) -> bool:
    with suppress(OSError, ValueError):  # a name that is too long, say
        return Path(name).is_file()
    return False
