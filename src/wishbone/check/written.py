"""A pair as the texts that are compared and shown.

Two pairs are the same if their `written` texts are. A conversation of one user message counts as its text, and so does
a completion of one assistant message, because layouts write them in both ways.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Side = str | list[dict[str, Any]]


def written(side: Side, alone: str) -> str:
    """A text that differs if the side does.

    Args:
        side: a text or messages.
        alone: the role of a message that may stand for its text, if it is the only one and says nothing else.
    """
    if isinstance(side, str):
        return side
    if len(side) == 1 and side[0]["role"] == alone and is_plain(side[0]):
        return str(side[0]["content"])
    return json.dumps(side, sort_keys=True, ensure_ascii=False, default=repr)


def is_plain(message: Mapping[str, Any]) -> bool:
    """Whether a message has a role and a text, and nothing else."""
    return len(message) == 2 and isinstance(message.get("content"), str)


def message_texts(message: Mapping[str, Any]) -> Iterator[str]:
    """The texts that a message holds: its content or its text blocks, and whatever else it says, as JSON."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (str(block["text"]) for block in content if isinstance(block, Mapping) and "text" in block)
    if not is_plain(message):
        rest = {key: value for key, value in message.items() if key not in ("role", "content") and value}
        yield from (json.dumps(value, ensure_ascii=False, default=repr) for value in rest.values())


def side_text(side: Side) -> str:
    """All that a side says, without roles; messages below each other."""
    return side if isinstance(side, str) else "\n".join(text for message in side for text in message_texts(message))
