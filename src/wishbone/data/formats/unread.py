"""Columns that no layout reads although they may hold a part of the prompt, found by their names and what they say.

Nothing says that a column `Question` is the prompt, or that `System` is the system prompt, so they are not read. But
what they say may be missing from the pairs:

    System, system_message    spelled otherwise than the name that is read        beside any layout
    Question, user_prompt     named like a prompt                                 where no column holds the prompt
    dialogue, problem, task   may hold one: three words or more, or messages      where no column holds the prompt
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from wishbone.data.formats.layouts import COLUMNS
from wishbone.data.formats.prompt import CONTEXT

IMPLICIT = ("implicit_text", "implicit_messages", "transcript")
"""Layouts without a column for the prompt."""

_NAMED = re.compile("prompt|question|instruction|query", re.IGNORECASE)
_POSSIBLE = re.compile(
    "article|chat|context|conversation|dialog|document|history|human|input|message|passage|post|problem|request|task"
    "|turns|user",
    re.IGNORECASE,
)
_FEWEST_WORDS = 3
_SYNONYMS = {"systemmessage": "system", "systeminstruction": "system", "sysprompt": "system", "sys": "system"}


def may_hold_prompt(name: object) -> bool:
    """Whether a column, by its name, may hold a part of the prompt and has to be looked at."""
    return bool(meant_name(name) or _fewest_words(name))


@lru_cache(maxsize=1024)
def meant_name(name: object) -> str | None:
    """The name of a layout's column that is spelled here in another way, such as `system` for `System`; else None."""
    return None if name in COLUMNS else _SPELLINGS.get(_plain(str(name)))


@lru_cache(maxsize=1024)
def _fewest_words(name: object) -> int:
    """How many words of a text make it a prompt, where no column holds one; 0 if a column of this name holds none."""
    if _NAMED.search(str(name)):
        return _FEWEST_WORDS - 1
    return _FEWEST_WORDS if _POSSIBLE.search(str(name)) else 0


def says_more(name: object, value: Any, layout: str, pairs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a column that is not read says something that may belong to the prompt, and that no pair has.

    Args:
        name: of the column.
        value: of a row.
        layout: of the row.
        pairs: that the row became.
    """
    fewest = 1 if meant_name(name) else _fewest_words(name) * (layout in IMPLICIT)
    if not fewest:
        return False
    if not isinstance(value, str):
        fewest = 1
    said = [text.strip() for text in _said(value)]
    known = [text for pair in pairs for text in _prompt_texts(pair)]
    return any(len(text.split()) >= fewest and not any(text in other for other in known) for text in said)


def _said(value: Any) -> list[str]:
    """A text, or what system and user say in a list of messages."""
    if isinstance(value, str):
        return [value]
    messages = [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
    return [
        text
        for item in messages
        if item.get("role", item.get("from")) in ("user", "human", "system")
        if isinstance(text := item.get("content", item.get("value")), str)
    ]


def _prompt_texts(pair: Mapping[str, Any]) -> list[str]:
    prompt = pair["prompt"]
    return [prompt] if isinstance(prompt, str) else [str(message.get("content") or "") for message in prompt]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


_SPELLINGS = {_plain(name): name for name in CONTEXT} | _SYNONYMS
