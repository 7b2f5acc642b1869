"""Chat messages in the spellings of public data sets, rewritten as `{"role": ..., "content": ...}`.

Spellings: `{role, content}`, sharegpt's `{from, value}`, a plain text if the role is clear, a
`\n\nHuman: ...\n\nAssistant: ...` transcript, tool calls as JSON text. Roles become system, user, assistant or tool.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wishbone.data import json_text

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}

TEXT_PARTS = frozenset(("input_text", "output_text"))
"""Types of content blocks that are text, in the words of OpenAI's Responses API."""
IMAGE_PARTS = frozenset(("image", "image_url", "input_image"))
"""Types of content blocks that are an image, in transformers' and OpenAI's words."""
IMAGE_SOURCES = ("image", "image_url", "bytes", "path", "url")
"""Keys under which such a block, or the cell of a column, brings the image."""

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_SPEAKER_ROLES = {"Human": "user", "Assistant": "assistant"}


class Misfit(Exception):
    """A value is not accepted; the message continues the name of its field ("chosen" + " is empty")."""


def text(value: Any) -> str:
    """The value, if it is text that can be encoded.

    Raises:
        Misfit: another type, or half of a surrogate pair (a broken emoji escape in JSON).
    """
    if not isinstance(value, str):
        raise Misfit(f"is {kind(value)}; it must be text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Misfit(f"contains half of a surrogate pair at character {error.start}, which is not text") from None
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, if it is an object; raises Misfit."""
    if not isinstance(value, Mapping):
        raise Misfit(f"is {kind(value)}; it must be an object")
    return value


def user_turn(value: Any) -> list[Message]:
    """A text as the only user message of a prompt; raises Misfit."""
    return [{"role": "user", "content": text(value)}]


def system_turn(value: Any) -> list[Message]:
    """A text as a system message, no message if it is blank; raises Misfit."""
    return [{"role": "system", "content": value}] if text(value).strip() else []


def history(value: Any) -> list[Message]:
    """Alpaca's `[[question, answer], ...]` as alternating user and assistant messages; raises Misfit."""
    if not isinstance(value, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in value):
        raise Misfit("must be a list of [question, answer] pairs")
    return [
        {"role": role, "content": text(said)}
        for turn in value
        for role, said in zip(("user", "assistant"), turn, strict=True)
    ]


def is_transcript(value: str) -> bool:
    """Whether a text is an HH-RLHF dialogue."""
    return value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def transcript(value: Any) -> list[Message]:
    """An HH-RLHF dialogue as messages, each without the white space around it; raises Misfit."""
    before, *turns = _SPEAKER.split(text(value))
    if before.strip() or not turns:
        raise Misfit("is not a transcript: it must begin with 'Human:' or 'Assistant:'")
    return [
        {"role": _SPEAKER_ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(turns[::2], turns[1::2], strict=True)
    ]


def asked(value: Any) -> list[Message]:
    """A text as a prompt: the turns of an HH-RLHF dialogue that ends where the answer begins, else one user turn.

    Raises:
        Misfit: no text.
    """
    said = text(value).rstrip()
    if not (is_transcript(said) and said.endswith("\n\nAssistant:")):
        return user_turn(value)
    return transcript(said)[:-1]


def completion(value: Any) -> list[Message]:
    """A completion (a text, one message or a list of messages) as a list of messages; raises Misfit."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": text(value)}]
    return messages([value] if isinstance(value, Mapping) else value)


def messages(value: Any) -> list[Message]:
    """A list of messages in either spelling, each rewritten by `message`; raises Misfit naming the message."""
    if not isinstance(value, list):
        raise Misfit(f"is {kind(value)}; it must be a list of messages")
    if not value:
        raise Misfit("has no messages")
    result = []
    for number, item in enumerate(value, 1):
        try:
            result.append(message(item))
        except Misfit as misfit:
            raise Misfit(f"message {number} {misfit}") from None
    return result


def message(value: Any) -> Message:
    """One message with a role of system, user, assistant or tool, and no key that is None.

    Other keys of `{role, content}` messages (tool_calls, name, reasoning_content, ...) are kept, because chat templates
    may print them, and so are those of `{from, value}` turns. OpenAI's former `function_call` becomes tool_calls, and a
    refusal without content becomes the content.
    Content is text or a list of blocks, {"type": "text", "text": ...} or {"type": "image"} with what it brings.

    Raises:
        Misfit: not an object, an unknown role, no content, sound or video.
    """
    role_key, content_key = ("from", "value") if "from" in mapping(value) and "role" not in value else _KEYS
    if role_key not in value:
        raise Misfit("has no role")
    name = value[role_key]
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise Misfit(f"has the unknown role {name!r:.40}; known: {', '.join(ROLES)}")
    content = value.get(content_key)
    if name == "function_call":
        return {"role": role, "content": "", "tool_calls": _function_calls(content)}
    value = _with_tool_calls(value)
    if content is None and isinstance(refusal := value.get("refusal"), str):
        content, value = refusal, {key: item for key, item in value.items() if key != "refusal"}
    if content is None and not value.get("tool_calls"):
        raise Misfit(f"({name}) has no {content_key}")
    result: Message = {"role": role}
    if content is not None:
        result["content"] = [_block(block) for block in content] if isinstance(content, list) else _content(content)
    kept = value.keys() - {role_key, content_key, *_KEYS}
    result |= storable({key: item for key, item in value.items() if key in kept and item is not None})
    for call in result.get("tool_calls") or ():
        called = call.get("function", call)
        if isinstance(called, Mapping) and isinstance(arguments := called.get("arguments"), str):
            storable(parse_json(arguments))  # a chat template gets what the text writes
    return result


_KEYS = ("role", "content")


def _with_tool_calls(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with tool_calls as objects, and the call of OpenAI's former key `function_call` among them."""
    if calls := value.get("tool_calls"):
        read = parse_json(calls) if isinstance(calls, str) else calls
        read = [parse_json(call) if isinstance(call, str) else call for call in read] if isinstance(read, list) else [0]
        if not all(isinstance(call, Mapping) for call in read):
            raise Misfit("has tool_calls that are not a list of objects, or the JSON of one")
        value = {**value, "tool_calls": read}
    if not (isinstance(call := value.get("function_call"), Mapping) and call.get("name")):
        return value
    others = {key: item for key, item in value.items() if key != "function_call"}
    return others | {"tool_calls": [*(value.get("tool_calls") or []), *_function_calls(call)]}


def with_parsed_arguments(calling: list[Message]) -> list[Message]:
    """The messages with the arguments of tool calls as objects; OpenAI writes JSON text, chat templates need objects.

    Raises:
        Misfit: a tool call without a function.
    """
    for item in calling:
        if isinstance(calls := item.get("tool_calls"), list):
            item["tool_calls"] = [_parsed_call(call) for call in calls]
    return calling


def image_source(part: Mapping[str, Any]) -> Any:
    """What an image part of a message brings: a path, a URL, the bytes of a file, or an object of those; or None."""
    found = next((part[name] for name in IMAGE_SOURCES if part.get(name)), None)
    if isinstance(found, Mapping):
        return next((found[name] for name in IMAGE_SOURCES if found.get(name)), None)
    return found


def parse_json(value: str) -> Any:
    """The value of a JSON text; None if the text is not JSON."""
    try:
        return json_text.parse_json(value)
    except json_text.NotJsonError:
        return None


def storable(value: Any) -> Any:
    """The value, if it can be stored as JSON; raises Misfit."""
    if reason := json_text.unstorable(value):
        raise Misfit(reason)
    return value


def kind(value: Any) -> str:
    """The type of a value, in the terms of JSON."""
    names = {type(None): "empty (null)", str: "text", dict: "an object", list: "a list", bool: "a truth value"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _content(value: Any) -> str:
    try:
        return text(value)
    except Misfit as misfit:
        raise Misfit(f"has content that {misfit}") from None


def _block(value: Any) -> Message:
    if isinstance(value, str):
        value = {"type": "text", "text": value}
    if isinstance(value, Mapping) and value.get("type") is None and isinstance(value.get("text"), str):
        value = {"type": "text", "text": value["text"]}
    if isinstance(value, Mapping) and value.get("type") in TEXT_PARTS:
        value = {"type": "text", "text": value.get("text")}
    if isinstance(value, Mapping) and value.get("type") in IMAGE_PARTS:
        brought = image_source(value)
        return {"type": "image"} if brought is None else {"type": "image", "image": brought}
    if not (isinstance(value, Mapping) and value.get("type") == "text"):
        found = value.get("type") if isinstance(value, Mapping) else kind(value)
        raise Misfit(f"has a content block of type {found!r:.40}; only text and images are read")
    return {"type": "text", "text": _content(value.get("text"))}


def _function_calls(value: Any) -> list[Message]:
    calls = parse_json(value) if isinstance(value, str) else value
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise Misfit("(function_call) is not the JSON of {name, arguments} or of a list of them")
    return [
        {
            "type": "function",
            "function": {"name": text(call["name"]), "arguments": _arguments(call.get("arguments", {}))},
        }
        for call in calls
    ]


def _parsed_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise Misfit("has a tool call without a function")
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments", {}))}}


def _arguments(value: Any) -> Any:
    parsed = parse_json(value) if isinstance(value, str) else value
    return storable(parsed if isinstance(parsed, Mapping) else value)
