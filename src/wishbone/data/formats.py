r"""The layouts of a preference pair in data sets, and the one that all become: prompt, chosen, rejected.

There are nine layouts. `recognize` finds the layout of a row from its columns and the types of its values, `normalize`
rewrites the row. The result is either three texts or three lists of chat messages:

    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    {"prompt": [{"role": "user", "content": ...}], "chosen": [{"role": "assistant", "content": ...}], "rejected": ...}

Texts stay texts (they are trained unchanged, with an end-of-sequence token); conversations become messages (the chat
template of the model writes the turns). Without a prompt column, the prompt is the common beginning of `chosen` and
`rejected`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from wishbone.data import messages as chat
from wishbone.data.messages import Message, Misfit
from wishbone.errors import RequestError

__all__ = ["FORMATS", "Message", "columns_to_read", "common_prompt", "normalize", "recognize"]

Row = Mapping[str, Any]

FORMATS: dict[str, str] = {
    "text": "prompt, chosen, rejected: texts",
    "messages": "prompt, chosen, rejected: lists of {role, content}",
    "prompt_and_conversations": "prompt: text; chosen, rejected: lists of {role, content} (UltraFeedback)",
    "implicit_text": "chosen, rejected: texts that begin with the same prompt",
    "implicit_messages": "chosen, rejected: whole conversations, lists of {role, content}",
    "transcript": r"chosen, rejected: '\n\nHuman: ...\n\nAssistant: ...' (HH-RLHF)",
    "sharegpt": "conversations, chosen, rejected: {from, value} turns; optional system, tools",
    "instruction": "instruction (or question), chosen, rejected; optional input, system, history (Alpaca)",
    "openai": "input.messages, preferred_output, non_preferred_output; optional input.tools (OpenAI)",
}

_COLUMNS = (
    *("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "conversations", "system"),
    *("instruction", "question", "input", "history", "preferred_output", "non_preferred_output"),
)


def columns_to_read(names: Iterable[str]) -> list[str]:
    """The columns of a table that some layout uses; all columns if the table fits no layout."""
    found = list(names)
    if {"chosen", "rejected"} <= set(found) or {"preferred_output", "non_preferred_output"} <= set(found):
        return [name for name in found if name in _COLUMNS]
    return found


def recognize(row: Row) -> str:
    """Return the layout of a row, a key of `FORMATS`.

    Columns that belong to no layout are ignored.

    Raises:
        RequestError: no layout has these columns, or the types of the values fit none; the message lists the columns
            and every layout.
    """
    if {"input", "preferred_output", "non_preferred_output"} <= row.keys():
        return "openai"
    if {"conversations", "chosen", "rejected"} <= row.keys():
        return "sharegpt"
    if {"chosen", "rejected"} <= row.keys():
        completions = [row[side] for side in ("chosen", "rejected") if row[side] is not None]
        types = set(map(type, completions))
        if "prompt" in row:
            prompt = type(row["prompt"])
            if prompt is list:
                return "messages"
            if prompt is str and types == {str}:
                return "text"
            if prompt is str and types == {list}:
                return "prompt_and_conversations"
        elif "instruction" in row or "question" in row:
            return "instruction"
        elif types == {str}:
            return "transcript" if all(map(chat.is_transcript, completions)) else "implicit_text"
        elif types == {list}:
            return "implicit_messages"
    found = ", ".join(f"{name!s:.40} ({chat.kind(value)})" for name, value in list(row.items())[:20]) or "none"
    accepted = "".join(f"\n  - {description}" for description in FORMATS.values())
    raise RequestError(
        f"these columns are not those of a preference pair: {found}. Rename or rewrite them as one of these layouts "
        f"(other columns are ignored):{accepted}"
    )


def normalize(row: Row, format: str, *, system_prompt: str | None = None) -> dict[str, Any]:
    """Rewrite a row of a known layout as prompt, chosen, rejected.

    Args:
        row: the row; columns that do not belong to the layout are ignored.
        format: a key of `FORMATS`.
        system_prompt: added before a conversation that has no system message; refused for texts.

    Returns:
        prompt, chosen, rejected: three texts or three lists of messages, whose roles are system, user, assistant,
        tool and which have no key that is None. `tools` (JSON text or list) and `chat_template_kwargs` (dict) are
        added if the row has them.

    Raises:
        RequestError: the row does not fit; one problem per field, without the number of the row.
    """
    fields = _Fields(row)
    pair = _READERS[format](fields)
    extras = {
        "tools": fields.read("tools", _tools),
        "chat_template_kwargs": fields.read("chat_template_kwargs", _kwargs),
    }
    if fields.problems:
        raise RequestError(fields.problems)
    try:
        prompt, chosen, rejected = _divide(pair)
    except Misfit as misfit:
        raise RequestError(str(misfit)) from None
    if system_prompt is not None:
        if isinstance(prompt, str):
            raise RequestError("is text, not a conversation, so data.system_prompt cannot be added; leave it out")
        if prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": system_prompt}, *prompt]
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        **{name: value for name, value in extras.items() if value is not None},
    }


def common_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """The prompt that two texts (or two conversations) share, and what is left of each.

    The cut is where they first differ. In texts, a space before the cut goes to the completions. If the shorter one is
    the beginning of the other, its last character (message) counts as its completion. This is the rule of
    `trl.extract_prompt`, except for texts that differ from the first character on: here the prompt is then empty, while
    TRL looks at the last character of the text, as if it were before the cut.

    Args:
        chosen: a text or list that is not empty.
        rejected: of the same type, not empty.
    """
    shorter = min(len(chosen), len(rejected))
    cut, differs = 0, shorter
    while cut < differs:  # halves the stretch that holds the first difference
        middle = (cut + differs) // 2
        if chosen[cut : middle + 1] == rejected[cut : middle + 1]:
            cut = middle + 1
        else:
            differs = middle
    if cut == shorter or (cut > 0 and chosen[cut - 1] == " "):
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


class _Fields:
    """Reads the fields of one row and collects all problems."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.problems: list[str] = []

    def read(self, name: str, reader: Callable[[Any], Any]) -> Any:
        """The field as its reader returns it; None if the row does not have it."""
        return None if self.row.get(name) is None else self.require(name, reader)

    def require(self, name: str, reader: Callable[[Any], Any]) -> Any:
        try:
            if name not in self.row:
                raise Misfit("is missing")
            return reader(self.row[name])
        except Misfit as misfit:
            self.problems.append(f"{name} {misfit}")
            return None

    def completions(self, reader: Callable[[Any], Any]) -> tuple[Any, Any]:
        return self.require("chosen", reader), self.require("rejected", reader)


# A reader returns (prompt, chosen, rejected); if prompt is None, chosen and rejected contain it.
_Pair = tuple[Any, Any, Any]


def _prompt_and_conversations(fields: _Fields) -> _Pair:
    prompt = fields.require("prompt", chat.user_turn)
    sides = fields.completions(chat.messages)
    whole = all(side and side[0]["role"] in ("system", "user") for side in sides)
    return None if whole else prompt, *sides


def _sharegpt(fields: _Fields) -> _Pair:
    system = fields.read("system", chat.system_turn) or []
    turns = fields.require("conversations", chat.messages) or []
    return system + turns, *fields.completions(chat.completion)


def _instruction(fields: _Fields) -> _Pair:
    system = fields.read("system", chat.system_turn) or []
    earlier = fields.read("history", chat.history) or []
    query = fields.require("instruction" if "instruction" in fields.row else "question", chat.text)
    user = "\n".join(part for part in (query, fields.read("input", chat.text)) if part)
    return [*system, *earlier, {"role": "user", "content": user}], *fields.completions(chat.completion)


def _openai(fields: _Fields) -> _Pair:
    request = _Fields(fields.require("input", chat.mapping) or {})
    prompt = None if fields.problems else request.require("messages", _openai_messages)
    fields.problems += [f"input.{problem}" for problem in request.problems]
    fields.row = {"tools": request.row.get("tools"), **fields.row}
    sides = (fields.require(name, _openai_messages) for name in ("preferred_output", "non_preferred_output"))
    return prompt, *sides


def _openai_messages(value: Any) -> list[Message]:
    return chat.with_parsed_arguments(chat.completion(value))


_READERS: dict[str, Callable[[_Fields], _Pair]] = {
    "text": lambda fields: (fields.require("prompt", chat.text), *fields.completions(chat.text)),
    "messages": lambda fields: (fields.require("prompt", chat.messages), *fields.completions(chat.completion)),
    "prompt_and_conversations": _prompt_and_conversations,
    "implicit_text": lambda fields: (None, *fields.completions(chat.text)),
    "implicit_messages": lambda fields: (None, *fields.completions(chat.messages)),
    "transcript": lambda fields: (None, *fields.completions(chat.transcript)),
    "sharegpt": _sharegpt,
    "instruction": _instruction,
    "openai": _openai,
}


def _divide(pair: _Pair) -> _Pair:
    """Remove the prompt from completions that contain it; check that prompt and completions are complete."""
    prompt, chosen, rejected = pair
    if prompt is None:
        if not (chosen and rejected):
            raise Misfit(f"{'rejected' if chosen else 'chosen'} is empty, so it contains no prompt")
        prompt, chosen, rejected = common_prompt(chosen, rejected)
        if isinstance(prompt, list) and not prompt:
            raise Misfit("chosen and rejected begin with different messages, so there is no prompt")
    elif isinstance(prompt, list):
        if chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        for side, completion in (("chosen", chosen), ("rejected", rejected)):
            if completion and completion[0]["role"] in ("system", "user"):
                raise Misfit(f"{side} begins with a {completion[0]['role']} message; it must contain only the reply")
    if isinstance(prompt, list):
        for side, completion in (("chosen", chosen), ("rejected", rejected)):
            if not completion or completion[-1]["role"] != "assistant":
                raise Misfit(f"{side} does not end with an assistant message")
    return prompt, chosen, rejected


def _tools(value: Any) -> str | list[Any] | None:
    tools = chat.parse_json(value) if isinstance(value, str) else value
    if isinstance(value, str) and not value.strip():
        return None
    if not isinstance(tools, list):
        raise Misfit("must be a list of tools, or the JSON of one")
    chat.storable(tools)
    return value  # type: ignore[no-any-return]


def _kwargs(value: Any) -> dict[str, Any]:
    return dict(chat.storable(chat.mapping(value)))
