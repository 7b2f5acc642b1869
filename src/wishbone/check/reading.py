"""The pairs of one source, one after another, with their places; rows that are no pair are kept with their reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wishbone.data.formats import FORMATS, read_pairs, recognize
from wishbone.data.formats.rewrite import ALWAYS_READ
from wishbone.data.row_reader import NumberedRow
from wishbone.errors import RequestError

Pair = Mapping[str, Any]

GIVEN_UP_AFTER = 100
SHOWN_REASONS = 20


@dataclass
class Contents:
    """What one source was found to hold.

    Attributes:
        name: of the source.
        rows: how many it has.
        layout: a key of `FORMATS`, that of the first row which has one; empty if none has.
        unread: columns that are not read.
        misfits: how many rows are not a pair.
        reasons: places and reasons of the first ones.
    """

    name: str
    rows: int = 0
    layout: str = ""
    unread: dict[str, None] = field(default_factory=dict)
    misfits: int = 0
    reasons: list[tuple[str, str]] = field(default_factory=list)

    @property
    def description(self) -> str:
        """The layout in words."""
        return FORMATS[self.layout]

    def pairs(self, row: Any) -> list[Pair]:
        """The pairs of the next row; raises RequestError if it is none."""
        self.rows += 1
        if isinstance(row, RequestError):
            raise row
        self.layout = self.layout or recognize(row).layout
        found = read_pairs(row, self.layout)
        read = found.used | ALWAYS_READ
        self.unread |= {str(name): None for name in row if name not in read}
        return list(found.pairs)

    def add_misfit(self, place: str, problems: Sequence[str]) -> None:
        """Keep the place and the reasons of a row that is not a pair."""
        self.misfits += 1
        if len(self.reasons) < SHOWN_REASONS:
            self.reasons.append((place, "; ".join(problems)))


class PairReader:
    """Reads the pairs of one source, as often as asked.

    Args:
        name: of the source, for messages.
        rows: starts reading at the first row.
        prefix: stands before each place, to tell several sources apart.

    Attributes:
        contents: of the last time that it was read; complete after the last row.
    """

    def __init__(self, name: str, rows: Callable[[], Iterable[NumberedRow]], *, prefix: str = "") -> None:
        self.contents = Contents(name)
        self._prefix = prefix
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[str, Pair]]:
        """Place and pair (prompt, chosen, rejected) of each row that is one.

        Raises:
            RequestError: the source cannot be read, has no rows, or none of them is a pair.
        """
        found = self.contents = Contents(self.contents.name)
        for _, place, row in self._rows():
            try:
                pairs = found.pairs(row)
            except RequestError as misfit:
                found.add_misfit(self._prefix + place, misfit.problems)
                if not found.layout and found.misfits >= GIVEN_UP_AFTER:
                    break
            else:
                yield from ((self._prefix + place, pair) for pair in pairs)
        if not found.rows:
            raise RequestError(f"{found.name} has no rows; give at least one preference pair")
        if found.misfits == found.rows:
            place, reason = found.reasons[0]
            raise RequestError(f"{found.name}: no row is a preference pair; {place} {reason}")
