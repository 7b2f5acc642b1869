"""Faults that one pair shows by itself, before any tokenizer reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from wishbone.check.special_tokens import SpecialTokens
from wishbone.check.written import Side, message_texts, side_text

NEARLY = 0.95
"""Share of the words, or of the characters at both ends, from which on two completions are nearly the same."""


def pair_faults(pair: Mapping[str, Any], special: SpecialTokens) -> dict[str, str]:
    """Keys of `KINDS` for what is wrong with a pair, each with what was found there or an empty text.

    Args:
        pair: prompt, chosen, rejected: three texts or three lists of messages.
        special: tokens that do not belong into them.
    """
    prompt, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
    found = dict.fromkeys(_about_completions(chosen, rejected), "")
    if not _says_something(prompt):
        found["blank_prompt"] = ""
    if isinstance(prompt, list):
        found |= dict.fromkeys(_about_roles(prompt, chosen, rejected), "")
    if token := _leaked((prompt, chosen, rejected), special):
        found["special_tokens"] = token
    return found


def _about_completions(chosen: Side, rejected: Side) -> Iterator[str]:
    if not (_says_something(chosen) and _says_something(rejected)):
        yield "empty"
    elif chosen == rejected:
        yield "identical"
    elif nearly_same(side_text(chosen), side_text(rejected)):
        yield "near_identical"


def _says_something(side: Side) -> bool:
    if isinstance(side, str):
        return bool(side) and not side.isspace()
    return any(text and not text.isspace() for message in side for text in message_texts(message))


def _about_roles(prompt: Side, chosen: Side, rejected: Side) -> Iterator[str]:
    asked = [message["role"] for message in prompt if isinstance(message, dict)]
    answers = [[message["role"] for message in side if isinstance(message, dict)] for side in (chosen, rejected)]
    if any(role in ("user", "system") for roles in answers for role in roles):
        yield "more_speakers"
    if asked and asked[-1] == "assistant" and all(roles and roles[0] == "assistant" for roles in answers):
        yield "answered"
    conversations = [asked[:-1] if asked[-1:] == ["assistant"] else asked, *answers]
    if any(a == b in ("user", "assistant") for roles in conversations for a, b in pairwise(roles)):
        yield "same_speaker"
    if "system" in asked[1:]:
        yield "late_system"


def _leaked(sides: tuple[Side, ...], special: SpecialTokens) -> str | None:
    for side in sides:
        if isinstance(side, str):
            token = special.find(side, is_whole=True)
        else:
            texts = (text for message in side for text in message_texts(message))
            token = next(filter(None, map(special.find, texts)), None)
        if token:
            return token
    return None


def nearly_same(one: str, other: str) -> bool:
    """Whether two texts differ in few words, or in one short stretch of characters.

    They share at least 95% of their words (twice the words that both have, over the words of both), or one beginning
    and one end that together are at least 95% of the longer text.
    """
    shorter, longer = sorted((len(one), len(other)))
    if shorter < 0.8 * longer:
        return False
    if shorter >= NEARLY * longer and _shared_ends(one, other) >= NEARLY * longer:
        return True
    words, others = one.split(), other.split()
    if min(len(words), len(others)) < NEARLY * max(len(words), len(others)):
        return False
    both = (Counter(words) & Counter(others)).total()
    return 2 * both >= NEARLY * (len(words) + len(others))


def _shared_ends(one: str, other: str) -> int:
    """Characters of the common beginning, and of the common end of the rest."""
    limit = min(len(one), len(other))
    start = _common(one, other, limit)
    return start + _common(one[start:][::-1], other[start:][::-1], limit - start)


def _common(one: str, other: str, limit: int) -> int:
    """Characters up to the first difference, at most `limit`."""
    same, differs = 0, min(limit, len(one), len(other))
    while same < differs:  # halves the stretch that holds the first difference
        middle = (same + differs + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            differs = middle - 1
    return same
