"""Layouts that say which completion is chosen and which is rejected."""

from __future__ import annotations

from typing import Any

from wishbone.data import messages as chat
from wishbone.data.formats.fields import Answers, Fields, Row, is_empty
from wishbone.data.messages import Message

QUERIES = ("prompt", "instruction", "question", "query", "input")
"""Columns with the text that a person says, in the order in which they are looked for."""


def question(fields: Fields) -> list[Message] | None:
    """The user turn of a query column, with `input` below it on a new line; messages if the column holds them."""
    name = fields.first(*QUERIES)
    turns: list[Message] | None = fields.require(name, turns_or_question)
    if not isinstance(fields.row.get(name), str) or name == "input" or turns is None:
        return turns
    further = fields.read("input", chat.text)
    *earlier, last = turns
    return [*earlier, last | {"content": "\n".join(part for part in (last["content"], further) if part)}]


def repeats_question(row: Row) -> bool:
    """Whether both completions, texts, begin with the question, two words or more, which would be trained twice."""
    asked, *sides = (
        next((row[name] for name in names if not is_empty(row.get(name))), None)
        for names in (QUERIES, ("chosen", "chosen_response"), ("rejected", "rejected_response"))
    )
    if not (isinstance(asked, str) and len(asked.split()) > 1):
        return False
    return all(isinstance(side, str) and side.lstrip().startswith(asked.strip()) for side in sides)


def text(fields: Fields) -> Answers:
    """Prompt, chosen and rejected as texts."""
    return Answers(fields.require("prompt", chat.text), fields.completions(chat.text))


def messages(fields: Fields) -> Answers:
    """The prompt as messages; completions as texts, messages or conversations that begin with the prompt."""
    return Answers(fields.require("prompt", chat.messages), fields.completions(chat.completion))


def prompt_and_conversations(fields: Fields) -> Answers:
    """The prompt as text, completions as messages; conversations that are whole contain the prompt."""
    return _asked(fields, fields.completions(chat.messages))


def instruction(fields: Fields) -> Answers:
    """A question, with `input` below it; completions as texts or messages."""
    return _asked(fields, fields.completions(chat.completion))


def _asked(fields: Fields, sides: list[Any]) -> Answers:
    return Answers(None if _are_whole(sides) else question(fields), sides)


def implicit_text(fields: Fields) -> Answers:
    """Texts that begin with the prompt."""
    return Answers(None, fields.completions(chat.text))


def implicit_messages(fields: Fields) -> Answers:
    """Conversations that begin with the prompt."""
    return Answers(None, fields.completions(chat.messages))


def transcript(fields: Fields) -> Answers:
    """HH-RLHF dialogues that begin with the prompt."""
    return Answers(None, fields.completions(chat.transcript))


def conversation(fields: Fields) -> Answers:
    """The prompt as messages under another name; completions as texts, messages or whole conversations."""
    name = fields.first("conversations", "messages", "context")
    turns = fields.require(name, turns_or_question) or []
    sides = fields.completions(chat.completion)
    if _are_whole(sides) and not all(side[: len(turns)] == turns for side in sides):
        fields.used.discard(name)  # checked against the conversations, which contain the prompt
        return Answers(None, sides)
    if turns and turns[-1:] == sides[0]:
        turns = turns[:-1]  # a conversation that ends with the chosen answer
    return Answers(turns, sides)


def swift(fields: Fields) -> Answers:
    """A conversation that ends with the chosen answer, and the rejected answer beside it (ms-swift)."""
    if fields.has("messages"):
        turns = fields.require("messages", chat.messages) or []
    else:
        turns = [*(question(fields) or []), *(fields.require("response", chat.completion) or [])]
    if not is_empty(fields.row.get("rejected_messages")):
        worse = fields.require("rejected_messages", chat.messages) or []
        return Answers(None, [turns, worse])
    return Answers(turns[:-1], [turns[-1:], fields.require("rejected_response", chat.completion)])


def openai(fields: Fields) -> Answers:
    """OpenAI's preference format."""
    fields.used.add("input")
    given = fields.require("input", chat.mapping)
    request = Fields(given or {})
    prompt = None if given is None else request.require("messages", openai_messages)
    fields.problems += [f"input.{problem}" for problem in request.problems]
    fields.row = {"tools": request.row.get("tools"), **fields.row}
    sides = [fields.require(name, openai_messages) for name in ("preferred_output", "non_preferred_output")]
    return Answers(prompt, sides)


def openai_messages(value: Any) -> list[Message]:
    """Messages whose tool calls have arguments as objects; raises Misfit."""
    return chat.with_parsed_arguments(chat.completion(value))


def _are_whole(sides: list[Any]) -> bool:
    return all(side and isinstance(side, list) and side[0]["role"] in ("system", "user") for side in sides)


def turns_or_question(value: Any) -> list[Message]:
    """Messages, or a text as the only user turn or as a dialogue's turns; raises Misfit."""
    return chat.asked(value) if isinstance(value, str) else chat.messages(value)
