"""Images of a pair: gathered from its columns and from the parts of its messages, and placed in the prompt.

    images, image                              columns: paths, data URLs, or files as `datasets` stores them
    {"type": "image", "image": "cat.png"}      a part of a message that brings its image
    {"type": "image"}                          a part that says where the next image of the column stands
    "<image> What is it?"                      the same in text

Without a place, all images stand before the first question, as in TRL. Nothing is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from wishbone.data.formats.fields import Fields, is_empty
from wishbone.data.formats.prompt import PICTURES
from wishbone.data.messages import Message, Misfit, image_source, kind, text

Images = Literal["refuse", "read", "drop"]
"""What happens to images: "refuse" is a problem of the row, "drop" trains on its text alone."""
Sides = tuple[Any, Any, Any]

MARK = "<image>"

NOT_READ = (
    "holds images, and only a model that reads images trains on them; name one in model.name, or set data.columns: "
    "{images: null} to train on the text alone"
)
IN_A_COMPLETION = "holds an image, and images of prompts alone are trained (docs/images.md); leave the row out"
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def with_images(sides: Sides, fields: Fields, images: Images) -> tuple[Sides, list[dict[str, Any]]]:
    """Return prompt, chosen and rejected with their images placed, and the images.

    Args:
        sides: three texts or three lists of messages.
        fields: the row's; its columns of images are read.
        images: what happens to them.

    Returns:
        The sides, in which each part of an image is `{"type": "image"}`, and for each image `{"bytes": ..., "path":
        ...}`, one of which is None. A data URL is a path.

    Raises:
        Misfit: images that are refused, in a completion, given twice, or that do not go with their places; what is no
            image; an address on the network.
    """
    prompt, *completions = sides
    column = _of_columns(fields, images)
    for name, side in zip(("chosen", "rejected"), completions, strict=True):
        if images != "drop" and any(_image_parts(message) for message in _messages(side)):
            raise Misfit(f"{name} {NOT_READ if images == 'refuse' else IN_A_COMPLETION}")
    parts = [part for message in _messages(prompt) for part in _image_parts(message)]
    if images == "refuse" and parts:
        raise Misfit(f"prompt {NOT_READ}")
    if images == "drop":
        return (_without_images(prompt), *map(_without_images, completions)), []  # type: ignore[return-value]
    brought = [part["image"] for part in parts if "image" in part]
    if brought and (column or len(brought) < len(parts)):
        where = "a column of images is beside them" if column else f"{len(parts) - len(brought)} parts bring none"
        raise Misfit(f"prompt has parts that bring their images, and {where}; give all images in one way")
    found = column or [_cell(value, "prompt") for value in brought]
    if not found and not parts:
        return sides, []
    if isinstance(prompt, list):
        places = len(parts)
        if not parts:
            marks = sum(_said(message).count(MARK) for message in prompt if message["role"] == "user")
            prompt, places = (_at_marks(prompt), marks) if marks else (_before_text(prompt, len(found)), len(found))
        if places != len(found):
            raise Misfit(
                f"prompt has {places} places of images, and the row {len(found)} images; name each image once, as a "
                'part {"type": "image"} of the prompt, or name none'
            )
        prompt = [_placed(message) for message in prompt]
    return (prompt, *completions), found  # type: ignore[return-value]


def _of_columns(fields: Fields, images: Images) -> list[dict[str, Any]]:
    """What the columns of images hold."""
    filled = [name for name in PICTURES if not is_empty(fields.row.get(name))]
    fields.used.update(name for name in PICTURES if name in fields.row)
    if not filled or images == "drop":
        return []
    if images == "refuse":
        raise Misfit(f"{filled[0]} {NOT_READ}")
    if len(filled) > 1:
        raise Misfit("images and image both hold images; keep one of the columns")
    name, value = filled[0], fields.row[filled[0]]
    if not isinstance(value, list):
        return [_cell(value, name)]
    return [_cell(item, f"{name}, item {number}") for number, item in enumerate(value, 1)]


def _cell(value: Any, name: str) -> dict[str, Any]:
    """An image as its file's bytes, or as a path."""
    content = value
    if isinstance(value, Mapping):
        content = value.get("bytes") or image_source(value)
    if isinstance(content, bytes | bytearray | memoryview):
        return {"bytes": bytes(content), "path": None}
    try:
        written = isinstance(content, str) and bool(text(content).strip())
    except Misfit as misfit:
        raise Misfit(f"{name} {misfit}") from None
    if not written:
        raise Misfit(f"{name} is {kind(value)}; an image is a path, a data URL, or the bytes of a file")
    if isinstance(value, Mapping) and content is value.get("bytes"):
        raise Misfit(f"{name} has bytes that are text; write them as a data URL (data:image/png;base64,...)")
    if _REMOTE.match(content):
        raise Misfit(f"{name} {content!r:.80} is not fetched from the network; save the image beside the data first")
    return {"bytes": None, "path": content}


def _messages(side: Any) -> list[Message]:
    return side if isinstance(side, list) else []


def _image_parts(message: Message) -> list[Message]:
    content = message.get("content")
    return [part for part in content if part["type"] == "image"] if isinstance(content, list) else []


def _has_parts(side: Any) -> bool:
    return any(_image_parts(message) for message in _messages(side))


def _without_images(side: Any) -> Any:
    """Messages without their images.

    Raises:
        Misfit: a message says nothing else.
    """
    if not _has_parts(side):
        return side
    kept = []
    for message in side:
        if _image_parts(message):
            texts = [part for part in message["content"] if part["type"] != "image"]
            if not texts:
                raise Misfit("without its images a message is empty; leave the row out")
            message = {**message, "content": texts}
        kept.append(message)
    return kept


def _said(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _text_parts(message: Message) -> list[Message]:
    content = message.get("content") or []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _before_text(prompt: list[Message], count: int) -> list[Message]:
    """The prompt with images before its first question."""
    first = next((at for at, message in enumerate(prompt) if message["role"] == "user"), None)
    if first is None:
        raise Misfit("prompt has images and no message of a user; name the place of each image")
    opened = {**prompt[first], "content": [{"type": "image"}] * count + _text_parts(prompt[first])}
    return [*prompt[:first], opened, *prompt[first + 1 :]]


def _at_marks(prompt: list[Message]) -> list[Message]:
    """The prompt with images where the texts of its questions name them."""
    placed = []
    for message in prompt:
        if message["role"] == "user" and MARK in _said(message):
            parts: list[Message] = []
            for part in _text_parts(message):
                first, *later = part["text"].split(MARK)
                parts += [{"type": "text", "text": first}] * bool(first)
                for said in later:
                    parts.append({"type": "image"})
                    parts += [{"type": "text", "text": said}] * bool(said)
            message = {**message, "content": parts}
        placed.append(message)
    return placed


def _placed(message: Message) -> Message:
    """The message with nothing but a place where an image stands."""
    if not _image_parts(message):
        return message
    return {**message, "content": [{"type": "image"} if p["type"] == "image" else p for p in message["content"]]}
