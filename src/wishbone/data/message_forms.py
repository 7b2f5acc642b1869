"""The forms in which a message can be given to a chat template, which say the same.

    content      a text, or a list of text blocks
    arguments    of a tool call: an object, or its JSON as text
    content      of a message that only calls tools: missing, empty, or null
    thoughts     under the key that a template reads, or under another one
    a call       in tool_calls, or in OpenAI's former key function_call

Most templates take one form of each and leave out, misprint or refuse the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from wishbone.data.json_text import NotJsonError, parse_json
from wishbone.data.lost_text import OTHER_THOUGHT_KEYS, thought_text

Message = dict[str, Any]
Conversation = list[Message]
Form = Callable[[Message], Message]


def without_nulls(value: Any) -> Any:
    """A value without the keys whose value is None, on all levels: Arrow adds the keys of one row to all others."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def with_argument_objects(message: Message) -> Message:
    """The message with the arguments of its tool calls as objects, which are what transformers documents."""
    return _with_arguments(message, _parsed)


def with_argument_texts(message: Message) -> Message:
    """The message with the arguments of its tool calls as JSON text, which is what OpenAI's API returns."""
    return _with_arguments(
        message, lambda value: json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value
    )


def with_text_content(message: Message) -> Message:
    """The message with its text blocks joined to one text, without anything between them."""
    content = message.get("content")
    if not isinstance(content, list) or not all(map(_is_text_block, content)):
        return message
    return message | {"content": "".join(block["text"] for block in content)}


def with_block_content(message: Message) -> Message:
    """The message with its text as a list of one text block."""
    content = message.get("content")
    return message | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def with_some_content(message: Message) -> Message:
    """The message with an empty content if it has none."""
    return message if "content" in message else message | {"content": ""}


def with_null_content(message: Message) -> Message:
    """The message with null as its content if it only calls tools."""
    blank = isinstance(message.get("content"), str) and not message["content"].strip()
    return message | {"content": None} if blank and message.get("tool_calls") else message


def with_known_keys(message: Message) -> Message:
    """The message with a thought in reasoning_content, a former function_call in tool_calls, a refusal as content."""
    known = dict(message)
    if isinstance(known.get("refusal"), str) and not known.get("content"):
        known["content"] = known.pop("refusal")
    if isinstance(call := known.get("function_call"), Mapping):
        del known["function_call"]
        known["tool_calls"] = [*(known.get("tool_calls") or []), _parsed_call(call)]
    for key in OTHER_THOUGHT_KEYS:
        if "reasoning_content" not in known and (thought := thought_text(known.get(key))):
            known["reasoning_content"] = thought
            del known[key]
    return known if known != message else message


def _parsed_call(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": _with_argument(dict(call), _parsed)}


def _with_arguments(message: Message, change: Callable[[Any], Any]) -> Message:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return message | {"tool_calls": [_with_argument(call, change) for call in calls]}


def _with_argument(call: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_argument(call["function"], change)}
    return {**call, "arguments": change(call["arguments"])} if "arguments" in call else call


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        parsed = parse_json(value)
    except NotJsonError:
        return value
    return parsed if isinstance(parsed, Mapping) else value


def _is_text_block(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("type", "text") == "text" and isinstance(block.get("text"), str)
