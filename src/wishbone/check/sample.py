"""The pairs that a person may look at: some of each finding, and others spread evenly over the data.

Which ones is known only after all pairs were compared, so they are read once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from wishbone.check.examine import Examination
from wishbone.check.kinds import KINDS
from wishbone.check.ledger import Ledger
from wishbone.check.reading import Pair, PairReader
from wishbone.check.written import Side, message_texts

if TYPE_CHECKING:
    from wishbone.check.model_view import ModelView

OF_EACH = 20
"""Pairs of each finding."""
OTHERS = 150
LONGEST, PAGE = 12_000, 6_000_000
"""Most characters of a text, or tokens of a side, that are shown, and most of all pairs together."""

Turn = tuple[str, str]
Token = tuple[str, bool]


@dataclass(frozen=True)
class View:
    """A pair as a person looks at it.

    Attributes:
        place: where it stands.
        faults: keys of `KINDS`.
        sides: turns of "prompt", "chosen", "rejected" as read: role (empty for text) and text, cut where it is long.
        tokens: the same as the model sees them, each with whether it is a special token; None without a model, or where
            the template refuses the pair.
        lengths: of the sides, in the unit of the examination.
    """

    place: str
    faults: tuple[str, ...]
    sides: dict[str, list[Turn]]
    tokens: dict[str, list[Token]] | None
    lengths: tuple[int, int, int]


def chosen_pairs(ledger: Ledger) -> list[int]:
    """Indices of the pairs to show, ascending: the first ones of each fault, and others at equal distances."""
    found = [np.flatnonzero(ledger.has(name))[:OF_EACH] for name in KINDS]
    even = np.linspace(0, len(ledger) - 1, min(OTHERS, len(ledger)))
    return sorted({*np.concatenate(found).tolist(), *even.round().astype(int).tolist()})


def longest_shown(pairs: int) -> int:
    """Characters of a text, and tokens of a side, so that a page of so many pairs stays small."""
    return min(LONGEST, PAGE // (3 * max(pairs, 1)))


def views(found: Examination, indices: Sequence[int], model: ModelView | None, longest: int) -> list[View]:
    """Read the pairs of these indices, ascending, once more.

    Raises:
        RequestError: a source cannot be read any more.
    """
    return [
        _view(pair, place, found.ledger, index, model, longest)
        for index, place, pair in _picked(found.readers, indices)
    ]


def _picked(sources: Iterable[PairReader], indices: Sequence[int]) -> Iterator[tuple[int, str, Pair]]:
    wanted = iter(indices)
    following = next(wanted, None)
    for index, (place, pair) in enumerate(chain.from_iterable(sources)):
        if following is None:
            return
        if index == following:
            yield index, place, pair
            following = next(wanted, None)


def _view(pair: Pair, place: str, ledger: Ledger, index: int, model: ModelView | None, longest: int) -> View:
    names = ("prompt", "chosen", "rejected")
    tokens = None
    if model is not None:
        seen = model.see([pair])[0]
        if "refused" not in seen.found:
            ids = (seen.prompt, seen.chosen, seen.rejected)
            tokens = {name: model.tokens(side, longest) for name, side in zip(names, ids, strict=True)}
    sides = {name: turns(pair[name], longest) for name in names}
    return View(place, ledger.of_pair(index), sides, tokens, ledger.lengths_of(index))


def turns(side: Side, longest: int) -> list[Turn]:
    """Role and text of each message; of a text one turn without a role. What is cut off is counted."""
    if isinstance(side, str):
        return [("", _cut(side, longest))]
    return [(str(message.get("role", "")), _cut("\n".join(message_texts(message)), longest)) for message in side]


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]} ... and {len(text) - longest:,} more characters"
