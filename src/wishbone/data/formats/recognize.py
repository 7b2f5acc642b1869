"""Which layout a row has, and which of its columns are read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wishbone.data.formats.fields import Fields, Row
from wishbone.data.formats.layouts import COLUMNS, FORMATS, LAYOUTS
from wishbone.data.formats.rewrite import ALWAYS_READ, rewrite
from wishbone.data.formats.unread import may_hold_prompt
from wishbone.data.messages import Misfit, kind
from wishbone.errors import RequestError

Columns = Mapping[str, str | None]
"""Names of columns: Wishbone's name, and the name in the data; None if a column of this name is not read."""


@dataclass(frozen=True)
class Recognized:
    """How a row is read.

    Attributes:
        layout: a key of `FORMATS`.
        read: columns of the row that are read (or, where they say something that does not fit, refused).
        unread: columns of the row that are not read, whatever they say.
    """

    layout: str
    read: tuple[str, ...]
    unread: tuple[str, ...]


MOST_NAMES = 20
"""Names of columns in a message."""

ONE_ANSWER = {"instruction", "input", "output", "system", "history", "prompt", "response", "completion", "question",
              "answer", "query", "messages", "conversations", "text", "tools", "id", "source"}  # fmt: skip
"""Columns of rows that show one answer, for supervised fine-tuning."""
BETTER = (
    "accepted",
    "better",
    "good",
    "positive",
    "preferred",
    "win",
    "chosen_answer",
    "chosen_text",
    "response_chosen",
)
WORSE = ("refused", "worse", "bad", "negative", "dispreferred", "lose", "rejected_answer", "rejected_text",
         "response_rejected")  # fmt: skip
"""Names of two answers that people use."""

PAIR = ("prompt", "chosen", "rejected")
"""The names that most layouts share."""


def _what_they_are(row: Row) -> str:
    """What rows are that hold no pair, as a sentence; empty where it is not known."""
    given = {str(name).strip().lower(): str(name) for name in row}
    names = set(given)
    better, worse = (next((given[name] for name in known if name in names), None) for known in (BETTER, WORSE))
    if better and worse:
        return f"Write data.columns: {{chosen: {_quoted(better)}, rejected: {_quoted(worse)}}}. "
    if meant := _misspelt(given):
        return f"Write data.columns: {{{', '.join(f'{ours}: {_quoted(theirs)}' for ours, theirs in meant.items())}}}. "
    if "label" in names and names - {"label"} <= ONE_ANSWER:
        return "Rows with one answer and a label are for KTO; a pair has two answers to one prompt. "
    if names <= ONE_ANSWER:
        return "Rows with one answer are for supervised fine-tuning; a pair has two answers, and says which is better. "
    return ""


def _misspelt(given: Mapping[str, str]) -> dict[str, str]:
    """Columns by the names of a pair that theirs come close to: `rejectd`, `Chosen`, ` prompt`; empty if none is.

    Args:
        given: names of columns as they are written, by what they are without case and space.
    """
    meant: dict[str, str] = {}
    for ours in PAIR:
        if ours in given.values():
            continue
        others = {name for name, written in given.items() if written not in PAIR}
        if near := difflib.get_close_matches(ours, others, 1, 0.8):
            meant[ours] = given[near[0]]
    return meant


def _quoted(name: str) -> str:
    return name if name.isidentifier() else repr(name)


def recognize(row: Row) -> Recognized:
    """Return the layout of a row, and which of its columns are read.

    Args:
        row: names of columns are those of a layout (`renamed`).

    Raises:
        RequestError: no layout has these columns, or the types of the values fit none (the message lists the columns
            and every layout); or a cell looks like messages and cannot be read.
    """
    fields = Fields(row)
    layout = next((name for name, layout in LAYOUTS.items() if has_columns(row, name) and layout.fits(fields)), None)
    if layout is None:
        found = ", ".join(f"{_shown(name)} ({kind(value)})" for name, value in list(row.items())[:20]) or "none"
        accepted = "".join(f"\n  - {description}" for description in FORMATS.values())
        raise RequestError(
            f"these columns are not those of a preference pair: {found}. {_what_they_are(row)}Name them in "
            f"data.columns, or rewrite them as one of these layouts (other columns are not read):{accepted}"
        )
    if fields.problems:
        raise RequestError(fields.problems)
    try:
        used = rewrite(row, layout).used
    except (Misfit, RequestError):  # told with the number of the row when it is rewritten
        LAYOUTS[layout].read(fields)
        used = fields.used
    read = [name for name in row if name in used or name in ALWAYS_READ]
    return Recognized(layout, tuple(read), tuple(name for name in row if name not in read))


def has_columns(names: Iterable[str], layout: str) -> bool:
    """Whether these columns are those of a layout, whatever their values."""
    present = set(names)
    return all(present.intersection(alternatives) for alternatives in LAYOUTS[layout].needs)


def renamed(row: Row, columns: Columns) -> Row:
    """The row with the names of a layout: each column of `columns` under Wishbone's name, those of None left out."""
    if not columns:
        return row
    given = {ours: row[theirs] for ours, theirs in columns.items() if theirs is not None and theirs in row}
    taken = {theirs for theirs in columns.values() if theirs in row}
    dropped = {ours for ours, theirs in columns.items() if theirs is None}
    return {name: value for name, value in row.items() if name not in taken | dropped} | given


def check_columns(columns: Columns) -> None:
    """Refuse a mapping of names that no layout reads.

    Raises:
        RequestError: a name is not Wishbone's, or two of them name the same column.
    """
    problems = []
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            turned = f"; did you mean {theirs}: {_shown(ours)}?" if theirs in COLUMNS else ""
            problems.append(
                f"data.columns: {_shown(ours)} is not a column that Wishbone reads. On the left stands its name "
                f"({', '.join(sorted(COLUMNS))}), on the right the name in your data{turned}"
            )
    named = [theirs for theirs in columns.values() if theirs is not None]
    problems += [
        f"data.columns: {_shown(name)} is named twice; each column of the data has one meaning"
        for name in sorted({name for name in named if named.count(name) > 1})
    ]
    if problems:
        raise RequestError(problems)


def columns_to_read(names: Iterable[str], columns: Columns | None = None) -> list[str]:
    """The columns of a table that some layout uses or that may hold a prompt; all columns if it fits no layout.

    Args:
        names: of the columns of the table.
        columns: `data.columns`.
    """
    found = list(names)
    columns = columns or {}
    meant = set(renamed(dict.fromkeys(found), columns))
    if not any(has_columns(meant, layout) for layout in LAYOUTS):
        return found
    wanted = COLUMNS | {theirs for theirs in columns.values() if theirs is not None}
    return [name for name in found if name in wanted or may_hold_prompt(name)]


def shown_names(names: Iterable[str]) -> str:
    """Names of columns for a message: the first ones, each cut to 40 characters and fit to be printed."""
    listed = list(names)
    more = f" and {len(listed) - MOST_NAMES} more" if len(listed) > MOST_NAMES else ""
    return ", ".join(map(_shown, listed[:MOST_NAMES])) + more


def _shown(name: object) -> str:
    text = f"{name!s:.40}"
    return text if text.isprintable() else repr(text)
