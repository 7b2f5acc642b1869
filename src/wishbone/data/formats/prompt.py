"""The prompt of a pair: divided from completions that contain it, and completed by what other columns say.

A column that some layout reads as a part of the prompt is never ignored. Beside a layout that does not read it, a
system prompt and earlier turns are added in their place; a column that repeats what the prompt or an answer says is
fine; anything else is a problem of the row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wishbone.data import messages as chat
from wishbone.data.formats.fields import Fields, is_empty
from wishbone.data.messages import Message, Misfit
from wishbone.errors import RequestError

Pair = tuple[Any, Any, Any]

PICTURES = ("images", "image")
IMAGES = (*PICTURES, "videos", "audios")
CONTEXT = (
    *("system", "system_prompt", "history", "prompt", "instruction", "question", "query", "input"),
    *("messages", "conversations", "context", *IMAGES),
)
"""Columns that some layout reads as a part of the prompt, those of images, and those of sound and video, which none
reads."""


_LONG = 32
"""Characters from which on a text is not looked for as whole words; other scripts write no spaces between them."""


class NoCommonPrompt(RequestError):
    """Two conversations that should contain their prompt begin with different messages."""


def common_prompt(chosen: Any, rejected: Any) -> Pair:
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


def shares_nothing(pair: Mapping[str, str]) -> bool:
    """Whether the common beginning of two texts is no prompt: it is blank, or ends inside the first word of both."""
    prompt, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
    if not prompt.strip():
        return True
    return all(map(_is_letter, f"{prompt.strip()}{chosen[:1]}{rejected[:1]}"))


def divide(pair: Pair) -> Pair:
    """Remove the prompt from completions that contain it; check that prompt and completions are complete.

    Raises:
        Misfit: a completion is empty or not a reply.
        NoCommonPrompt: conversations begin with different messages.
    """
    prompt, chosen, rejected = pair
    if prompt is None:
        if not (chosen and rejected):
            raise Misfit(f"{'rejected' if chosen else 'chosen'} is empty, so it contains no prompt")
        prompt, chosen, rejected = common_prompt(chosen, rejected)
        if isinstance(prompt, list) and not prompt:
            raise NoCommonPrompt("chosen and rejected begin with different messages, so there is no prompt")
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


def completed(pair: Pair, fields: Fields) -> Pair:
    """The pair with what the columns of the prompt say that its layout did not read.

    Raises:
        Misfit: a column does not fit, or says something whose place in the prompt is not plain.
    """
    for name in CONTEXT:
        if name not in fields.row or name in fields.used or is_empty(fields.row[name]) or name in PICTURES:
            continue
        try:
            pair = _with_column(pair, name, fields.row[name])
        except Misfit as misfit:
            raise Misfit(
                f"{name} {misfit}. To train without this column on purpose, set data.columns: {{{name}: null}}"
            ) from None
        fields.used.add(name)
    return pair


def _with_column(pair: Pair, name: str, value: Any) -> Pair:
    prompt, *sides = pair
    if name in IMAGES:
        raise Misfit("holds sound or video, which are not read")
    if isinstance(prompt, str):
        if not _repeats(value, [prompt]):
            raise Misfit("is beside texts that contain their whole prompt, and says something else; write it into them")
        return pair
    if name in ("system", "system_prompt"):
        turn = chat.system_turn(value)
        if prompt[0]["role"] != "system":
            return [*turn, *prompt], *sides
        if _said(prompt[0]).strip() != value.strip():
            raise Misfit("differs from the system message of the conversation; keep one of the two")
        return pair
    if name == "history" and isinstance(value, list):
        earlier = chat.messages(value) if isinstance(value[0], dict) else chat.history(value)
        opening = prompt[: prompt[0]["role"] == "system"]
        turns = prompt[len(opening) :]
        if turns[: len(earlier)] == earlier:
            return pair
        if len(turns) > 1 or (earlier[0]["role"] == "system" and opening):
            raise Misfit("has turns beside a prompt that has several turns itself; write them into one conversation")
        return [*opening, *earlier, *turns], *sides
    if isinstance(value, str) and _repeats(value, [_said(message) for message in prompt]):
        return pair
    if isinstance(value, list) and _is_beginning(chat.messages(value), prompt, sides):
        return pair
    raise Misfit(
        "says something that is not in the prompt, and where it belongs is not plain; write it into the prompt"
    )


def _is_beginning(turns: list[Message], prompt: list[Message], sides: Sequence[list[Message]]) -> bool:
    """Whether messages repeat the prompt, with or without its system message and a completion."""
    bare = prompt[prompt[0]["role"] == "system" :]
    wholes = [[*start, *side] for start in (prompt, bare) for side in sides]
    return any(_plain(whole)[: len(turns)] == _plain(turns) for whole in wholes)


def _plain(turns: list[Message]) -> list[tuple[Any, str]]:
    return [(turn["role"], _said(turn).strip()) for turn in turns]


def _repeats(value: Any, said: Sequence[str]) -> bool:
    """Whether a text, or every message of a list, stands in one of these texts, not as a part of a word."""
    try:
        parts = [value] if isinstance(value, str) else [_said(message) for message in chat.messages(value)]
    except Misfit:
        return False
    return all(any(_stands_in(part.strip(), text) for text in said) for part in parts)


def _stands_in(part: str, text: str) -> bool:
    if len(part) >= _LONG:
        return part in text
    return bool(re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text))


def _said(part: Any) -> str:
    if isinstance(part, str):
        return part
    content = part.get("content") or ""
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


def _is_letter(character: str) -> bool:
    """A letter or digit of an alphabet that writes spaces between words."""
    return character.isalnum() and ord(character) < 0x2E80
