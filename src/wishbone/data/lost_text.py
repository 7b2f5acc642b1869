r"""Parts of a conversation that its rendered text does not contain.

A chat template is a program, and it may leave out what it does not know: thoughts, tool calls, results of tools,
content that is a list. So after rendering each part of each message is looked for in the text. These count as there:

    white space around and inside        templates strip and indent
    "a \"quoted\" word", 'it\'s', \n     templates write values as JSON or as Python does
    a thought and the text after it      wherever each stands

A short part, or one that another part repeats (an answer that begins with what was thought), may be found in the other
one; `template_shapes` tells whether it is printed at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Conversation = list[dict[str, Any]]

SURE = 16
"""Characters from which on a text that is found is the one that was looked for; shorter ones may be part of another."""
THOUGHTS, CALLS, RESULTS, BLOCKS, TOOLS = (
    "thoughts",
    "tool calls",
    "tool results",
    "content that is a list",
    "descriptions of tools",
)
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold what the assistant thinks before it answers, as templates name them."""
OTHER_THOUGHT_KEYS = ("thought", "thoughts", "think", "reasoning_details")
"""The same as data sets name them; no known template prints these."""

_TRAIN_MARKS = ("loss", "train", "training")
_LOOKED_FOR = frozenset(
    ("role", "content", "refusal", "tool_calls", "function_call", "weight", *_TRAIN_MARKS, *THOUGHT_KEYS)
) | frozenset(OTHER_THOUGHT_KEYS)
_THOUGHT = re.compile(r"\s*(?:<think>)?(.*)</think>(.*)", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """One thing that a message says: a text, a thought, the name of a tool, a key or a value of its arguments.

    Attributes:
        message: index of the message in the conversation; -1 for descriptions of tools.
        what: one of the constants above, or "the text of ... messages".
        text: the words.
    """

    message: int
    what: str
    text: str


@dataclass(frozen=True)
class Search:
    """What a search found: the parts that are missing, and those that may have been found in another one."""

    lost: list[Part]
    unsure: list[Part]


def search(conversation: Conversation, text: str) -> Search:
    """Look for everything that the messages of a conversation say in its rendered text."""
    lost: list[Part] = []
    found: list[Part] = []
    haystack = _Haystack(text)
    for index, message in enumerate(conversation):
        content = message.get("content")
        if isinstance(content, str) and len(message) == 2 and (said := content.strip()) in text:
            if said:  # the usual message, by the short way
                found.append(Part(index, _what_of(message), said))
            continue
        for what, value in _parts(message):
            (found if haystack.holds(value) else lost).append(Part(index, what, value))
        if isinstance(content, list) and any(map(haystack.holds_source_of, content)):
            lost.append(Part(index, BLOCKS, _first_text(content)))
    everything = "\0".join(part.text for part in found)
    return Search(lost, [part for part in found if len(part.text) < SURE or _occurs_twice(part.text, everything)])


def _occurs_twice(part: str, text: str) -> bool:
    return text.find(part, text.find(part) + 1) >= 0


def unprinted_keys(conversation: Conversation, text: str, source: str) -> set[str]:
    """Keys of messages that say something which a rendered text does not hold, and that no part above looks for.

    A number or a truth value counts as printed where the template's source names its key. What a tool's message is
    called by belongs to its call.
    """
    haystack = _Haystack(text)
    return {
        str(key)
        for message in conversation
        if len(message) > 2
        for key, value in message.items()
        if key not in _LOOKED_FOR and not (message["role"] == "tool" and key in ("name", "tool_call_id", "id"))
        if not all(map(haystack.holds, _leaves(value))) or (isinstance(value, bool | int | float) and key not in source)
    }


def marked_untrained(completion: Conversation) -> bool:
    """Whether an answer says that it is not to be trained, in the words of OpenAI, ms-swift, Axolotl and others."""
    return any(
        message["role"] == "assistant"
        and (message.get("weight") == 0 or any(message.get(key) is False for key in _TRAIN_MARKS))
        for message in completion
    )


def lost_tools(tools: list[Any] | None, text: str) -> list[Part]:
    """Names and descriptions of tools that a rendered text does not hold."""
    haystack = _Haystack(text)
    return [
        Part(-1, TOOLS, value)
        for tool in tools or []
        if isinstance(tool, Mapping)
        for described in [tool.get("function", tool)]
        if isinstance(described, Mapping)
        for value in (described.get("name"), described.get("description"))
        if isinstance(value, str) and not haystack.holds(value.strip())
    ]


def parts(conversation: Conversation, first: int = 0) -> set[Part]:
    """All that messages say, counted from `first`."""
    return {Part(index, *part) for index, message in enumerate(conversation, first) for part in _parts(message)}


def split_thought(content: str) -> tuple[str, str] | None:
    """The thought before `</think>` and what follows it; None without one."""
    found = _THOUGHT.fullmatch(content) if "</think>" in content else None
    return (found[1], found[2]) if found else None


class _Haystack:
    """A rendered text, with forms of it that are made when they are needed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._squeezed: str | None = None

    def holds(self, value: str) -> bool:
        """Whether the text has the value, as it is or as it is written between quotes, whatever the white space."""
        if value in self.text or any(form in self.text for form in _written_forms(value)):
            return True
        if self._squeezed is None:
            self._squeezed = _squeezed(self.text)
        return _squeezed(value) in self._squeezed

    def holds_source_of(self, block: Any) -> bool:
        """Whether a content block stands in the text as Python or JSON writes it."""
        return repr(block) in self.text or (
            isinstance(block, Mapping) and json.dumps(block, ensure_ascii=False) in self.text
        )


def _parts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a message says: a kind and a text that is not blank, for each thing."""
    for what, value in _all_parts(message):
        if said := value.strip():
            yield what, said


def _all_parts(message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in (*THOUGHT_KEYS, *OTHER_THOUGHT_KEYS):
        if key in message:
            yield THOUGHTS, thought_text(message[key])
    content = message.get("content")
    if isinstance(content, str):
        divided = split_thought(content) if message["role"] == "assistant" else None
        if divided:
            yield THOUGHTS, divided[0]
        yield _what_of(message), divided[1] if divided else content
    elif isinstance(content, list):
        for block in content:
            if isinstance(block, Mapping) and isinstance(block.get("text"), str):
                yield _what_of(message), block["text"]
    elif isinstance(content, Mapping):
        yield from ((_what_of(message), leaf) for leaf in _leaves(content))
    if isinstance(refusal := message.get("refusal"), str):
        yield _what_of(message), refusal
    calls = message.get("tool_calls")
    former = message.get("function_call")
    for call in [*(calls if isinstance(calls, list) else []), *([former] if isinstance(former, Mapping) else [])]:
        called = call.get("function", call) if isinstance(call, Mapping) else {}
        for value in (called.get("name"), called.get("arguments")):
            yield from ((CALLS, leaf) for leaf in _leaves(value))


def thought_text(value: Any) -> str:
    """A thought that is a text or a list of blocks {text} or {summary}, as one text; empty if it is neither."""
    if isinstance(value, str):
        return value
    blocks = [block for block in value if isinstance(block, Mapping)] if isinstance(value, list) else []
    return "\n".join(said for block in blocks for key in ("text", "summary") if isinstance(said := block.get(key), str))


def _what_of(message: Mapping[str, Any]) -> str:
    return RESULTS if message["role"] == "tool" else f"the text of {message['role']} messages"


def _leaves(value: Any) -> Iterator[str]:
    """Keys and values of a JSON value as texts; truth values and null, which templates spell in two ways, are left."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)


def _written_forms(value: str) -> Iterator[str]:
    """A text as JSON and Python write it between quotes, where that differs."""
    forms = (json.dumps(value, ensure_ascii=False), json.dumps(value), repr(value))
    return (form[1:-1] for form in dict.fromkeys(forms) if form[1:-1] != value)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _first_text(content: list[Any]) -> str:
    return next((str(block["text"]) for block in content if isinstance(block, Mapping) and "text" in block), "")
