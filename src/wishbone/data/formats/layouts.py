"""The layouts of preference pairs in public data sets: which columns each has, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from wishbone.data import messages as chat
from wishbone.data.formats import judged, paired
from wishbone.data.formats.fields import Answers, Fields
from wishbone.data.formats.paired import QUERIES
from wishbone.data.formats.prompt import CONTEXT

CHOSEN, REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
EXTRAS = ("tools", "chat_template_kwargs")
BESIDE_A_PROMPT = ("system", "system_prompt", "history", "input", *EXTRAS)
"""Columns that have a meaning only in a conversation: with them, texts become messages."""


class Layout(NamedTuple):
    """A layout.

    Attributes:
        description: its columns, for messages.
        needs: names of columns, of each of which the row has at least one.
        reads: other columns that it reads, if the row has them.
        read: reads a row.
        fits: whether the types of the values are those of the layout.
    """

    description: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Fields], Answers]
    fits: Callable[[Fields], bool] = lambda fields: True
    reads: tuple[str, ...] = ()


def _sides(fields: Fields) -> set[type]:
    values = (fields.row.get(fields.first(*names)) for names in (CHOSEN, REJECTED))
    return {type(value) for value in values if value is not None}


def _prompt_is(kind: type, *sides: set[type]) -> Callable[[Fields], bool]:
    return lambda fields: type(fields.row["prompt"]) is kind and (not sides or _sides(fields) in sides)


def _is_text_pair(fields: Fields) -> bool:
    return _prompt_is(str, {str})(fields) and not fields.row.keys() & set(BESIDE_A_PROMPT)


def _asks(fields: Fields) -> bool:
    """Whether the first query column is a text."""
    return isinstance(fields.row.get(fields.first(*QUERIES)), str | None)


def _is_transcript(fields: Fields) -> bool:
    values = [fields.row[fields.first(*names)] for names in (CHOSEN, REJECTED)]
    return all(chat.is_transcript(value) for value in values if isinstance(value, str))


_PAIR = (CHOSEN, REJECTED)

LAYOUTS: dict[str, Layout] = {
    "openai": Layout(
        "input.messages, preferred_output, non_preferred_output; optional input.tools (OpenAI)",
        (("input",), ("preferred_output",), ("non_preferred_output",)),
        paired.openai,
    ),
    "sharegpt": Layout(
        "conversations, chosen, rejected: {from, value} turns; optional system, tools",
        (("conversations",), *_PAIR),
        paired.conversation,
    ),
    "messages": Layout(
        "prompt, chosen, rejected: lists of {role, content}", (("prompt",), *_PAIR), paired.messages, _prompt_is(list)
    ),
    "text": Layout("prompt, chosen, rejected: texts", (("prompt",), *_PAIR), paired.text, _is_text_pair),
    "prompt_pairs": Layout(
        "prompt, chosen, rejected: texts; and system, history, input or tools (Axolotl)",
        (("prompt",), *_PAIR),
        paired.instruction,
        _prompt_is(str, {str}),
    ),
    "prompt_and_conversations": Layout(
        "prompt: text; chosen, rejected: lists of {role, content} (UltraFeedback, Tulu 3)",
        (("prompt",), *_PAIR),
        paired.prompt_and_conversations,
        _prompt_is(str, {list}),
    ),
    "instruction": Layout(
        "instruction (or question, query, input), chosen, rejected; optional input, system, history (Alpaca, Orca)",
        (("instruction", "question", "query", "input"), *_PAIR),
        paired.instruction,
        lambda fields: fields.row.get("prompt") is None and _asks(fields),
    ),
    "conversation": Layout(
        "messages (or context), chosen, rejected: {role, content} turns; optional system, tools",
        (("messages", "context"), *_PAIR),
        paired.conversation,
        lambda fields: fields.row.get("prompt") is None,
    ),
    "transcript": Layout(
        r"chosen, rejected: '\n\nHuman: ...\n\nAssistant: ...' (HH-RLHF)",
        _PAIR,
        paired.transcript,
        lambda fields: "prompt" not in fields.row and _sides(fields) == {str} and _is_transcript(fields),
    ),
    "implicit_text": Layout(
        "chosen, rejected: texts that begin with the same prompt",
        _PAIR,
        paired.implicit_text,
        lambda fields: "prompt" not in fields.row and _sides(fields) == {str},
    ),
    "implicit_messages": Layout(
        "chosen, rejected: whole conversations, lists of {role, content} (Skywork)",
        _PAIR,
        paired.implicit_messages,
        lambda fields: "prompt" not in fields.row and _sides(fields) == {list},
    ),
    "swift": Layout(
        "messages that end with the chosen answer, rejected_response or rejected_messages (ms-swift)",
        (("messages", "response"), ("rejected_response", "rejected_messages")),
        paired.swift,
        lambda fields: not fields.row.keys() & set(CHOSEN),
        ("query", "response", "system", "history"),
    ),
    "ranked_completions": Layout(
        "context: messages; completions: list of {rank, completion}, the lowest rank is the best (NeMo-RL)",
        (("context",), ("completions",)),
        judged.ranked,
    ),
    "scored_completions": Layout(
        "instruction; completions: list of {response, overall_score} (UltraFeedback as published)",
        (("instruction", "prompt", "question"), ("completions",)),
        judged.scored,
    ),
    "ranked_answers": Layout(
        "prompt; answers: list of {answer, rank}, the lowest rank is the best (Nectar)",
        (("prompt",), ("answers",)),
        judged.answers,
    ),
    "ratings": Layout(
        "instruction (or messages), generations, ratings: lists of the same length (distilabel, Argilla)",
        (("instruction", "prompt", "question", "input", "messages"), ("generations",), ("ratings", "rating")),
        judged.rated,
    ),
    "shp": Layout(
        "history, human_ref_A, human_ref_B, labels: 1 if A is better; optional score_A, score_B (SHP)",
        (("history",), ("human_ref_A",), ("human_ref_B",), ("labels",)),
        judged.shp,
        reads=("score_A", "score_B"),
    ),
    "helpsteer2": Layout(
        "prompt, response_1, response_2, preference_strength: below 0 if response_1 is better (HelpSteer2)",
        (("prompt",), ("response_1",), ("response_2",), ("preference_strength",)),
        judged.helpsteer2,
    ),
    "helpsteer3": Layout(
        "context, response1, response2, overall_preference: below 0 if response1 is better (HelpSteer3)",
        (("context",), ("response1",), ("response2",), ("overall_preference",)),
        judged.helpsteer3,
    ),
    "safe_rlhf": Layout(
        "prompt, response_0, response_1, better_response_id: 0 or 1 (PKU-SafeRLHF)",
        (("prompt",), ("response_0",), ("response_1",), ("better_response_id",)),
        judged.pku,
    ),
    "arena": Layout(
        "conversation_a, conversation_b, winner: model_a, model_b or tie (Chatbot Arena)",
        (("conversation_a",), ("conversation_b",), ("winner",)),
        judged.arena,
    ),
}
"""Every layout by its name, in the order in which a row is compared with them."""

FORMATS: dict[str, str] = {name: layout.description for name, layout in LAYOUTS.items()}

COLUMNS = frozenset(
    [name for layout in LAYOUTS.values() for names in layout.needs for name in names]
    + [name for layout in LAYOUTS.values() for name in layout.reads]
    + [*CONTEXT, *EXTRAS]
)
"""Every column that some layout reads."""
ASKED_IN_TEXT = ("text", "prompt_pairs", "instruction")
"""Layouts whose prompt is a text beside chosen and rejected."""
JUDGED = frozenset(name for name, layout in LAYOUTS.items() if layout.read.__module__ == judged.__name__)
"""Layouts with scores, ranks or labels, whose rows become pairs by a `PairRule`."""
