"""Whether a chat template prints a part of a message at all, tried with words that occur nowhere else.

A short text ("4", "a") may stand in the rendered text as a part of something else. Whether it is printed depends on the
shape of the conversation: roles, keys and kinds of values. So the shape is written once with marks in place of all
words, and the marks are looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from wishbone.data.chat_template import REFUSALS
from wishbone.data.lost_text import THOUGHT_KEYS, Part, search, split_thought
from wishbone.data.message_forms import Conversation, Message
from wishbone.data.template_writer import TemplateWriter
from wishbone.errors import RequestError


class Shapes:
    """What one chat template leaves out of conversations of each shape; each shape is tried once."""

    def __init__(self, writer: TemplateWriter) -> None:
        self._writer = writer
        self._lost: dict[tuple[Any, ...], frozenset[tuple[int, str]]] = {}

    def lost(self, conversation: Conversation, parts: list[Part]) -> list[Part]:
        """Which of some parts of a conversation the template never prints."""
        if not parts:
            return []
        shape = tuple(map(_shape, conversation))
        if shape not in self._lost:
            self._lost[shape] = self._tried(conversation)
        return [part for part in parts if (part.message, part.what) in self._lost[shape]]

    def _tried(self, conversation: Conversation) -> frozenset[tuple[int, str]]:
        numbers = count()
        marked = [_marked(message, numbers) for message in conversation]
        try:
            _, (written,) = self._writer.write([], [marked])
        except RequestError:
            raise
        except REFUSALS:
            return frozenset()
        return frozenset((part.message, part.what) for part in search(marked, written.text).lost)


def _shape(message: Mapping[str, Any]) -> tuple[Any, ...]:
    content, calls = message.get("content"), message.get("tool_calls")
    kind: Any = type(content).__name__
    if isinstance(content, str):
        kind = (bool(content.strip()), "</think>" in content)
    elif isinstance(content, list):
        kind = len(content)
    called = [type(_function(call).get("arguments")).__name__ for call in calls] if isinstance(calls, list) else []
    return (*message, kind, message["role"], *called)


def _marked(message: Message, numbers: Iterator[int]) -> Message:
    def mark() -> str:
        return f"probe{next(numbers):04d}ofanyword"

    marked = dict(message)
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        thought = message["role"] == "assistant" and split_thought(content) is not None
        marked["content"] = f"<think>\n{mark()}\n</think>\n\n{mark()}" if thought else mark()
    elif isinstance(content, list):
        marked["content"] = [
            {**block, "text": mark()} if isinstance(block, Mapping) and "text" in block else block for block in content
        ]
    for key in THOUGHT_KEYS:
        if isinstance(message.get(key), str) and message[key].strip():
            marked[key] = mark()
    if isinstance(message.get("tool_calls"), list):
        marked["tool_calls"] = [_marked_call(call, mark(), mark(), mark()) for call in message["tool_calls"]]
    return marked


def _marked_call(call: Any, name: str, key: str, value: str) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _marked_call(call["function"], name, key, value)}
    arguments: Any = {key: value}
    if isinstance(call.get("arguments"), str):
        arguments = f'{{"{key}": "{value}"}}'
    return {**call, "name": name, "arguments": arguments}


def _function(call: Any) -> Mapping[str, Any]:
    called = call.get("function", call) if isinstance(call, Mapping) else {}
    return called if isinstance(called, Mapping) else {}
