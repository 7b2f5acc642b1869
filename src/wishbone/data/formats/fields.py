"""The columns of one row: read by name, with all problems collected, and a record of which were read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wishbone.data.messages import Misfit, kind
from wishbone.data.written_values import looks_structured, read_messages, read_structure

Row = Mapping[str, Any]

LISTS = (
    *("messages", "conversations", "completions", "answers", "generations", "ratings", "rating", "images", "videos"),
    *("audios", "conversation_a", "conversation_b", "preferred_output", "non_preferred_output", "rejected_messages"),
)
"""Columns that hold lists: text that begins like one is parsed or refused."""
MAYBE_LISTS = ("history", "context")
"""Columns that hold lists in some layouts and texts in others: text that writes a list is parsed."""
TEXTS = (
    *("prompt", "chosen", "rejected", "chosen_response", "rejected_response", "instruction", "question", "query"),
    *("input", "response"),
)
"""Columns that hold texts or messages: text that writes messages is parsed; other text stays as it is."""


class Answers(NamedTuple):
    """What a layout reads from a row.

    Attributes:
        prompt: text or messages; None if the completions contain it.
        completions: texts or lists of messages, at least two: chosen and rejected if there are no scores.
        scores: one for each completion, higher is better; None if the row says which is chosen.
        unscored: completions that the row lists without a score, which are left out.
    """

    prompt: Any
    completions: list[Any]
    scores: list[float] | None = None
    unscored: int = 0


class Fields:
    """Reads the columns of one row and collects all problems.

    Attributes:
        row: the row; cells that write lists as text are parsed.
        problems: what does not fit, a sentence for each column.
        used: columns that were read.
    """

    def __init__(self, row: Row) -> None:
        self.problems: list[str] = []
        self.used: set[str] = set()
        self.row = self._parsed(row)

    def _parsed(self, row: Row) -> Row:
        parsed = {}
        for name, value in row.items():
            if not isinstance(value, str) or (read := _WRITTEN.get(name)) is None:
                continue
            if looks_structured(value):
                try:
                    parsed[name] = read(value)
                except Misfit as misfit:
                    self.problems.append(f"{name} {misfit}")
                    self.used.add(name)
        return {**row, **parsed} if parsed else row

    def has(self, *names: str) -> bool:
        """Whether the row has all of these columns, whatever their values."""
        return all(name in self.row for name in names)

    def first(self, *names: str) -> str:
        """The first of these columns that has a value; without one the first that is there, or the first name."""
        filled = (name for name in names if not is_empty(self.row.get(name)))
        present = (name for name in names if name in self.row)
        return next(filled, next(present, names[0]))

    def read(self, name: str, reader: Callable[[Any], Any]) -> Any:
        """The column as its reader returns it; None if the row does not have it."""
        self.used.add(name)
        return None if self.row.get(name) is None else self.require(name, reader)

    def require(self, name: str, reader: Callable[[Any], Any]) -> Any:
        """The column as its reader returns it; None, and a problem, if it is missing or does not fit."""
        self.used.add(name)
        try:
            if name not in self.row:
                raise Misfit("is missing")
            return reader(self.row[name])
        except Misfit as misfit:
            if not any(problem.startswith(f"{name} ") for problem in self.problems):
                self.problems.append(f"{name} {misfit}")
            return None

    def completions(self, reader: Callable[[Any], Any]) -> list[Any]:
        """Chosen and rejected."""
        sides = self.first("chosen", "chosen_response"), self.first("rejected", "rejected_response")
        return [self.require(side, reader) for side in sides]


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing: null, blank text, a list or object without items."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | tuple | dict) and not value)


def number(value: Any) -> float:
    """A finite number, or text that writes one (a CSV file has only text); raises Misfit."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        shown = f" ({value!r:.40})" if isinstance(value, str | float) else ""
        raise Misfit(f"is {kind(value)}{shown}; it must be a finite number")
    return found


def items(value: Any) -> list[Any]:
    """A list with an item; raises Misfit."""
    if not isinstance(value, list):
        raise Misfit(f"is {kind(value)}; it must be a list")
    if not value:
        raise Misfit("has no items")
    return value


def _list_or_text(value: str) -> Any:
    """The list that a text writes, or the messages, or the text itself."""
    try:
        found = read_structure(value)
    except Misfit:
        return read_messages(value)
    return found if isinstance(found, list) and all(isinstance(item, list | dict) for item in found) else value


_WRITTEN: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(LISTS, read_structure),
    **dict.fromkeys(MAYBE_LISTS, _list_or_text),
    **dict.fromkeys(TEXTS, read_messages),
}
"""How a column is parsed where text looks like a list or an object."""
