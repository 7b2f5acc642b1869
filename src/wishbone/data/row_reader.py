"""Numbered rows of one source, rewritten as pairs; reports rows that do not fit and columns that are not read.

All rows that do not fit are reported together, each with its place. Whether the rows hold a prompt at all is judged
over all of them: two completions that happen to begin alike in a few rows are no prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from wishbone.data.formats import FORMATS, PairRule, read_pairs, recognize, renamed
from wishbone.data.formats.fields import Row
from wishbone.data.formats.images import Images
from wishbone.data.formats.layouts import ASKED_IN_TEXT, JUDGED
from wishbone.data.formats.paired import repeats_question
from wishbone.data.formats.prompt import NoCommonPrompt, shares_nothing
from wishbone.data.formats.recognize import shown_names
from wishbone.data.formats.rewrite import ALWAYS_READ
from wishbone.data.formats.unread import meant_name, says_more
from wishbone.errors import RequestError, counted, counted_of

NumberedRow = tuple[int, str, Any]  # number, place, and the row, or a RequestError if it cannot be read
InvalidRows = Literal["refuse", "drop"]
Template = Literal["auto", "chat", "none"]
"""`data.template`: in which form texts are trained."""

_GIVEN_UP_AFTER = 100
_SHOWN = 10


class MalformedRows(RequestError):
    """Some rows of a source do not fit its layout, and others do.

    Attributes:
        misfits: how many do not fit.
    """

    misfits = 0


@dataclass(frozen=True)
class RowRules:
    """How rows are rewritten.

    Attributes:
        invalid_rows: what happens to rows that do not fit: "refuse" raises, "drop" drops them.
        system_prompt: added before every conversation that has no system message.
        columns: names of columns, Wishbone's and the data's; None instead of a name: a column that is not read.
        rule: which scored completions become pairs.
        turns: whether texts with a prompt become one user turn and one answer.
        images: whether images are read or refused; where `columns` says that `images` is not read, they are dropped.
        folder: where relative paths of images begin and which none may leave; None: the working directory, any path.
    """

    invalid_rows: InvalidRows = "refuse"
    system_prompt: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    rule: PairRule = field(default_factory=PairRule)
    turns: bool = False
    images: Literal["refuse", "read"] = "refuse"
    folder: str | None = None

    @property
    def how_images(self) -> Images:
        """What happens to images, with what `columns` says of them."""
        return "drop" if "images" in self.columns and self.columns["images"] is None else self.images


def listed(lines: Sequence[str], *, total: int | None = None) -> str:
    """The first lines, one below the other, and the number of the others."""
    total = len(lines) if total is None else total
    more = [f"... and {total - _SHOWN} more"] if total > _SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:_SHOWN], *more])


class RowReader:
    """Rewrites the rows of one source as pairs, collects those that do not fit, and counts what is left out.

    Args:
        name: of the source, for messages.
        rules: how rows are rewritten.
        first: whether the rows are the first ones of the source; only then columns that are not read are told.
        partial: whether they are a part of the source, which may hold no pair.

    Attributes:
        layout: a key of `FORMATS`, that of the first row which has one; None before.
        rows: how many were read.
        misfits: how many of them do not fit.
        reasons: places and reasons of the first ten.
        judgments: for scored or ranked rows, how many pairs they became and what is left out; else empty.
        turned: whether texts became turns.
        notes: what a person has to know of the rows that were read, a sentence each; complete after the last row.
    """

    def __init__(self, name: str, rules: RowRules, *, first: bool = True, partial: bool = False) -> None:
        self.name = name
        self.rules = rules
        self.layout: str | None = None
        self.notes: list[str] = []
        self._first = first
        self._partial = partial
        self._unrecognized: list[RequestError] = []
        self.rows = self.misfits = 0
        self.reasons: list[tuple[str, str]] = []
        self.judgments = ""
        self._left_out: Counter[str] = Counter()
        self._columns: dict[str, bool] = {}  # whether some row needed the column
        self._pairs = self._without_prompt = self._with_prompt_twice = 0
        self.turned = False
        self._unread_prompts: Counter[str] = Counter()  # rows in which a column that is not read says more

    def read(self, rows: Iterable[NumberedRow]) -> Iterator[dict[str, Any]]:
        """The pairs of the rows that fit, as `read_pairs` returns them, with `source_row`.

        Raises:
            RequestError: after the last row, if there were no rows, none with a known layout, rows that do not fit
                (unless they are dropped), only such rows, no pair, or mostly rows without a prompt.
        """
        for number, place, row in rows:
            self.rows += 1
            try:
                if isinstance(row, RequestError):
                    raise row
                pairs = self._read(row)
            except RequestError as misfit:
                self.misfits += 1
                if len(self.reasons) < _SHOWN:
                    self.reasons.append((place, "; ".join(misfit.problems)))
                if self.layout is None and len(self._unrecognized) == _GIVEN_UP_AFTER:
                    break
            else:
                for pair in pairs:
                    yield pair | {"source_row": number}
        self._finish()

    def _read(self, row: Row) -> list[dict[str, Any]]:
        columns = self.rules.columns
        if columns:
            self._columns |= {theirs: True for theirs in columns.values() if theirs is not None and theirs in row}
            self._columns |= {ours: True for ours in columns if ours in row}
            row = renamed(row, columns)
        if self.layout is None:
            self.layout = self._recognized(row)
        try:
            rules = self.rules
            found = read_pairs(
                row,
                self.layout,
                system_prompt=rules.system_prompt,
                rule=rules.rule,
                turns=rules.turns,
                images=rules.how_images,
            )
        except NoCommonPrompt:
            self._without_prompt += 1
            self._columns |= {name: False for name in row if name not in self._columns}
            raise
        for name in row:
            if not self._columns.get(name):
                self._columns[name] = name in found.used or name in ALWAYS_READ
        for pair in found.pairs:
            if "images" in pair:
                pair["images"] = [{**image, "folder": rules.folder} for image in pair["images"]]
        self._pairs += len(found.pairs)
        self.turned |= found.turned
        self._left_out.update(ties=found.ties, narrow=found.narrow, unscored=found.unscored)
        if self.layout in ASKED_IN_TEXT:
            self._with_prompt_twice += repeats_question(row)
        if self.layout == "implicit_text":
            self._without_prompt += any(map(shares_nothing, found.pairs))
        self._unread_prompts.update(
            name
            for name in row
            if not self._columns[name] and (meant_name(name) or "prompt") not in columns
            if says_more(name, row[name], self.layout, found.pairs)
        )
        return found.pairs

    def _recognized(self, row: Row) -> str:
        try:
            return recognize(row).layout
        except RequestError as error:
            self._unrecognized.append(error)
            raise RequestError(f"has columns of no known layout: {shown_names(row)}") from None

    def _finish(self) -> None:
        misfits = self.misfits
        if self.rows == 0:
            raise RequestError(f"{self.name} has no rows; give at least one preference pair")
        if self.layout is None and self._unrecognized:
            raise RequestError(f"{self.name}: {self._unrecognized[0]}")
        self._refuse_missing_columns()
        if self._without_prompt * 2 > self.rows:
            raise RequestError(
                f"{self.name}: in {counted_of(self._without_prompt, self.rows, 'row')} chosen and rejected begin "
                "differently, so they do not contain their prompt, and no column is named as one. Name the prompt's "
                f"column in data.columns (prompt: ITS NAME); the columns are {shown_names(self._columns)}"
            )
        if self._with_prompt_twice * 2 > self.rows:
            raise RequestError(
                f"{self.name}: in {counted_of(self._with_prompt_twice, self.rows, 'row')} chosen and rejected both "
                "begin with the prompt, which would stand twice in what is trained. Set data.columns: {prompt: null} "
                "(or the name of its column) to take it from them, or cut it off them"
            )
        for name, rows in self._unread_prompts.items():
            if meant := meant_name(name):
                raise RequestError(
                    f"{self.name}: in {counted_of(rows, self.rows, 'row')} column {shown_names([name])} says something "
                    f"that is not in the prompt, and it is not read under this name. Set data.columns: "
                    f"{{{meant}: {shown_names([name])}}} to read it as {meant}, or {{{meant}: null}} to leave it out"
                )
            if rows * 2 > self.rows:
                raise RequestError(
                    f"{self.name}: column {shown_names([name])} seems to hold the prompt, and chosen and rejected do "
                    f"not contain it. Set data.columns: {{prompt: {shown_names([name])}}} to train with it, or "
                    "{prompt: null} if it is not the prompt"
                )
        told = counted_of(misfits, self.rows, "row", "does not fit", "do not fit")
        unusable = misfits == self.rows and (self._first or not self._partial)  # a later batch may hold no pair
        if misfits and (self.rules.invalid_rows == "refuse" or unusable):
            layout = f", read as '{FORMATS[self.layout]}'" if self.layout else ""
            remedy = (
                "Correct them, or set data.invalid_rows: drop to train without them"
                if misfits < self.rows
                else "Correct them"
            )
            kind = MalformedRows if misfits < self.rows else RequestError
            refusal = kind(f"{self.name}{layout}: {told}. {remedy}.{self._listed()}")
            if isinstance(refusal, MalformedRows):
                refusal.misfits = misfits
            raise refusal
        if misfits:
            self.notes.append(f"{self.name}: {told} and {'is' if misfits == 1 else 'are'} dropped:{self._listed()}")
        self._count_pairs()
        if self.turned and self._first:
            self.notes.append(
                f"{self.name}: the pairs are texts; the model's chat template writes each as one user turn and one "
                "answer (data.template: none trains them as they are)"
            )
        if self._first and (unread := self.unread):
            self.notes.append(f"{self.name}: these columns are not read: {shown_names(unread)}")

    @property
    def unread(self) -> list[str]:
        """Columns that no row needed, so far."""
        return [str(name) for name, is_read in self._columns.items() if not is_read]

    def _listed(self) -> str:
        return listed([f"{place} {reason}" for place, reason in self.reasons], total=self.misfits)

    def _refuse_missing_columns(self) -> None:
        absent = {
            ours: theirs
            for ours, theirs in self.rules.columns.items()
            if theirs is not None and theirs not in self._columns
        }
        missing = [
            f"data.columns names {theirs!r:.40} as {ours}"
            for ours, theirs in absent.items()
            if ours not in self._columns
        ]
        if self._first:  # a held-out set may have Wishbone's names
            self.notes += [
                f"{self.name}: data.columns names {theirs!r:.40} as {ours}, but no row has such a column; the column "
                f"{ours} is read"
                for ours, theirs in absent.items()
                if ours in self._columns
            ]
        if missing and self._columns:
            raise RequestError(
                f"{self.name}: {'; '.join(missing)}, but no row has such a column; the columns are "
                f"{shown_names(self._columns)}"
            )

    def _count_pairs(self) -> None:
        rule, left_out = self.rules.rule, self._left_out
        if self.layout is not None and self.layout not in JUDGED and rule.least_margin > 0:
            raise RequestError(
                f"{self.name}: data.least_margin {rule.least_margin:g} needs scored or ranked completions, but the "
                f"rows are '{FORMATS[self.layout]}', which have no scores; set it to 0"
            )
        if self.layout not in JUDGED:
            return
        kinds = {
            "pairs with equal scores or no winner": left_out["ties"],
            f"pairs below data.least_margin {rule.least_margin:g}": left_out["narrow"],
            "completions without a score": left_out["unscored"],
        }
        without = ", ".join(f"{kind} ({count})" for kind, count in kinds.items() if count)
        self.judgments = f"{counted(self._pairs, 'pair')} of {counted(self.rows, 'row')} (data.pairs: {rule.pairs})"
        self.judgments += f"; left out: {without}" if without else ""
        told = f"{self.name}: {self.judgments}"
        if not self._pairs and not self._partial:
            raise RequestError(f"{told}. Lower data.least_margin, or give rows with a winner")
        self.notes.append(told)
