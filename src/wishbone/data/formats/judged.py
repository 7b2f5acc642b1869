"""Layouts with several completions and a judgment: scores, ranks, or a label that names the better one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from wishbone.data import messages as chat
from wishbone.data.formats.fields import Answers, Fields, is_empty, items, number
from wishbone.data.formats.paired import question, turns_or_question
from wishbone.data.messages import Message, Misfit

_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_TURN_ROLES = {"User": "user", "Assistant": "assistant"}


def ranked(fields: Fields) -> Answers:
    """NeMo-RL: `context` and `completions` of {rank, completion}; the lowest rank is the best."""
    turns = fields.require("context", turns_or_question)
    return _listed(fields, turns, "completions", ("completion",), ("rank",), sign=-1)


def scored(fields: Fields) -> Answers:
    """UltraFeedback as published: `instruction` and `completions` of {response, overall_score}."""
    scores = ("overall_score", "fine-grained_score", "score", "rating")
    return _listed(fields, question(fields), "completions", ("response", "completion", "text"), scores)


def answers(fields: Fields) -> Answers:
    """Nectar: a transcript `prompt` and `answers` of {answer, rank}; the lowest rank is the best."""
    prompt = fields.require("prompt", _transcript_or_question)
    return _listed(fields, prompt, "answers", ("answer",), ("rank",), sign=-1)


def rated(fields: Fields) -> Answers:
    """distilabel and Argilla: `generations` and as many `ratings`; the highest rating is the best."""
    if fields.has("messages") and not fields.has("instruction"):
        prompt = fields.require("messages", chat.messages)
    else:
        prompt = question(fields)
    column = fields.first("ratings", "rating")
    texts, ratings = fields.require("generations", items), fields.require(column, items)
    if texts is None or ratings is None:
        return Answers(prompt, [])
    if len(texts) != len(ratings):
        fields.problems.append(f"{column} has {len(ratings)} items; generations has {len(texts)}")
        return Answers(prompt, [])
    return _judged(fields, prompt, "generations", list(zip(texts, ratings, strict=True)))


def shp(fields: Fields) -> Answers:
    """SHP: a post in `history`, two replies, `labels` 1 if A is preferred and 0 if B is."""
    prompt = fields.require("history", chat.user_turn)
    first = fields.require("labels", _one_of(1, 0))
    points = [fields.read(name, number) for name in ("score_A", "score_B")]
    apart = abs(points[0] - points[1]) if None not in points else 1.0
    return _two(fields, prompt, ("human_ref_A", "human_ref_B"), (apart or 1.0) * (1 if first == 1 else -1))


def pku(fields: Fields) -> Answers:
    """PKU-SafeRLHF: two responses and the number of the better one."""
    better = fields.require("better_response_id", _one_of(0, 1))
    return _two(fields, question(fields), ("response_0", "response_1"), 1 if better == 0 else -1)


def helpsteer2(fields: Fields) -> Answers:
    """HelpSteer2's preferences: `preference_strength` from -3 (response 1 is much better) to 3 (response 2 is)."""
    prompt = fields.require("prompt", _marked_turns)
    strength = fields.require("preference_strength", number)
    return _two(fields, prompt, ("response_1", "response_2"), -(strength or 0))


def helpsteer3(fields: Fields) -> Answers:
    """HelpSteer3's preferences: `overall_preference` from -3 (response 1 is much better) to 3 (response 2 is)."""
    turns = fields.require("context", turns_or_question)
    strength = fields.require("overall_preference", number)
    return _two(fields, turns, ("response1", "response2"), -(strength or 0))


def arena(fields: Fields) -> Answers:
    """Chatbot Arena: two conversations that begin alike, and the winner."""
    conversations = [fields.require(name, chat.messages) for name in ("conversation_a", "conversation_b")]
    winner = fields.require("winner", _winner) or 0
    return Answers(None, conversations, [winner, 0.0])


def _two(fields: Fields, prompt: Any, names: tuple[str, str], lead: float) -> Answers:
    """Two completions, the first of which leads by so much."""
    return Answers(prompt, [fields.require(name, chat.completion) for name in names], [float(lead), 0.0])


def _listed(
    fields: Fields, prompt: Any, column: str, texts: Sequence[str], scores: Sequence[str], *, sign: int = 1
) -> Answers:
    """Completions that are objects with a text and a score, each under the first of these names that it has."""

    def split(value: Any) -> list[tuple[Any, Any]]:
        found = []
        for place, item in enumerate(items(value), 1):
            if not isinstance(item, dict):
                raise Misfit(f"item {place} is {chat.kind(item)}; it must be an object")
            text = next((item[name] for name in texts if name in item), None)
            found.append((text, next((item[name] for name in scores if not is_empty(item.get(name))), None)))
        return found

    listed = fields.require(column, split)
    return _judged(fields, prompt, column, listed, sign=sign) if listed else Answers(prompt, [])


def _judged(fields: Fields, prompt: Any, column: str, listed: list[tuple[Any, Any]], *, sign: int = 1) -> Answers:
    """Completions with their scores; those without a score, or without a text, are left out and counted."""
    completions, scores = [], []
    for place, (said, score) in enumerate(listed, 1):
        if said is None or is_empty(score):
            continue
        try:
            completions.append(chat.completion(said))
            scores.append(sign * number(score))
        except Misfit as misfit:
            fields.problems.append(f"{column} item {place} {misfit}")
    unscored = sum(said is None or is_empty(score) for said, score in listed)
    if len(completions) < 2 and not fields.problems:
        fields.problems.append(f"{column} has {len(completions)} scored completions; a pair needs two")
    return Answers(prompt, completions, scores, unscored)


def _one_of(*values: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        found = int(value) if isinstance(value, bool) else number(value)
        if found not in values:
            raise Misfit(f"is {value!r:.40}; it must be {' or '.join(map(str, values))}")
        return int(found)

    return read


def _winner(value: Any) -> float:
    """1 if the first model won, -1 if the second did, 0 for a tie."""
    said = chat.text(value).strip().lower()
    if said in ("model_a", "model_b", "a", "b"):
        return 1.0 if said[-1] == "a" else -1.0
    if said.startswith("tie") or said in ("both_bad", "bothbad"):
        return 0.0
    raise Misfit(f"is {value!r:.40}; it must be model_a, model_b, tie or tie (bothbad)")


def _transcript_or_question(value: Any) -> list[Message]:
    """The turns of a transcript that ends where the answer begins, or a text as the only user turn; raises Misfit."""
    if not (isinstance(value, str) and chat.is_transcript(f"{value}\n\nAssistant:")):
        return chat.user_turn(value)
    turns = chat.transcript(value)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _marked_turns(value: Any) -> list[Message]:
    """HelpSteer2's prompts: the first user turn, and further turns behind <extra_id_1>User or <extra_id_1>Assistant."""
    first, *turns = _TURN.split(chat.text(value))
    return [
        *([{"role": "user", "content": first}] if first.strip() or not turns else []),
        *(
            {"role": _TURN_ROLES[speaker], "content": said}
            for speaker, said in zip(turns[::2], turns[1::2], strict=True)
        ),
    ]
