"""The pairs of one source, one after another, with their places; they can be read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from wishbone.data.formats import FORMATS
from wishbone.data.row_reader import NumberedRow, RowReader, RowRules

Pair = Mapping[str, Any]


class PairReader:
    """Reads the pairs of one source, as often as asked.

    Args:
        name: of the source, for messages.
        rows: starts reading at the first row.
        prefix: stands before each place, to tell several sources apart.
        rules: how rows become pairs; rows that are no pair are left out and counted, and texts are `turns`.

    Attributes:
        contents: what the source holds; complete after it was read once.
        turns: whether pairs of texts become one user turn and one answer.
        prerendered: whether they are texts in which a chat template's tokens stand already.
    """

    def __init__(
        self,
        name: str,
        rows: Callable[[], Iterable[NumberedRow]],
        *,
        prefix: str = "",
        rules: RowRules | None = None,
    ) -> None:
        self.turns = self.prerendered = False
        self._rules = rules or RowRules()
        self.contents = self._reader(name)
        self._name = name
        self._prefix = prefix
        self._rows = rows

    @property
    def layout(self) -> str:
        """The layout of the source in words."""
        return FORMATS.get(self.contents.layout or "", "none")

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Places and reasons of the first rows that are not a pair."""
        return [(self._prefix + place, reason) for place, reason in self.contents.reasons]

    def use_template(self, tokens: Sequence[str]) -> None:
        """Read pairs of texts as turns, as training does, unless most prompts hold tokens of the chat template.

        Args:
            tokens: of the tokenizer, the special ones; none: the prompts are not looked at.

        Raises:
            RequestError: as `__iter__`.
        """
        self.turns = True
        if not tokens:
            return
        reader = self._reader(self._name)
        count = held = 0
        for pair in reader.read(self._rows()):
            prompt = pair["prompt"]
            if not (reader.turned or isinstance(prompt, str)):
                return
            said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            count += 1
            held += any(token in said for token in tokens)
        self.prerendered = held * 2 > count
        self.turns = not self.prerendered

    def _reader(self, name: str) -> RowReader:
        return RowReader(name, replace(self._rules, invalid_rows="drop", turns=self.turns))

    def __iter__(self) -> Iterator[tuple[str, Pair]]:
        """Place and pair (prompt, chosen, rejected) of each row that is one.

        Raises:
            RequestError: as `RowReader`, but for rows that are not a pair if others are.
        """
        here = ""

        def placed() -> Iterator[NumberedRow]:
            nonlocal here
            for number, place, row in self._rows():
                here = place
                yield number, place, row

        reader = self._reader(self._name)
        for pair in reader.read(placed()):
            del pair["source_row"]
            yield self._prefix + here, pair
        self.contents = reader
