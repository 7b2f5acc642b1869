"""The one pass over the data: each pair is read, looked at, and forgotten but for its entry in the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from wishbone.check.kinds import CONTRADICTION, DUPLICATE, KINDS, LENGTH, UNREADABLE, Finding
from wishbone.check.ledger import Ledger, prompt_hash
from wishbone.check.lengths import Cut, Spreads, cuts, spreads
from wishbone.check.pair_faults import pair_faults
from wishbone.check.pictures import Pictures, PictureTotals, look_at
from wishbone.check.reading import Pair, PairReader
from wishbone.check.special_tokens import SpecialTokens
from wishbone.check.written import side_text
from wishbone.data.row_reader import Template

if TYPE_CHECKING:
    from wishbone.check.model_view import ModelView, Seen

SHOWN, DETAILS = 10, 5
"""Rows that a finding names, and lines in which it says what was found there."""
BATCH = 256
"""Pairs that are tokenized at once."""
MOSTLY = 0.7
"""Share of pairs from which on one side counts as mostly the longer one."""
_SIDES = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Examination:
    """What a data set holds.

    Attributes:
        readers: of the sources, each with what its source holds; they read the pairs again.
        held_out: pairs that are held out; None if none were given.
        ledger: an entry of each pair.
        unit: of the lengths, "tokens" or "characters".
        spreads: lengths of the sides.
        cuts: what limits of the length would cut; empty without a model.
        findings: by how much they hurt.
        example: index of the first pair without a fault, or 0.
        pictures: how many images there are, and how large.
    """

    readers: Sequence[PairReader]
    held_out: int | None
    ledger: Ledger
    unit: str
    spreads: Spreads
    cuts: Sequence[Cut]
    findings: Sequence[Finding]
    example: int
    pictures: PictureTotals

    @property
    def hurts(self) -> bool:
        """Whether some finding is more than a note."""
        return any(finding.kind.severity != "note" for finding in self.findings)


def examine(
    readers: Sequence[PairReader],
    *,
    held_out: PairReader | None = None,
    model: ModelView | None = None,
    template: Template = "auto",
    max_length: int | None = None,
) -> Examination:
    """Read all pairs once.

    Args:
        readers: of the pairs to learn from.
        held_out: the pairs to measure on; only their prompts are compared.
        model: counts tokens instead of characters, and finds what its chat template does to a pair.
        template: `data.template`; without a model, texts are looked at as they are.
        max_length: a limit of the length that is looked at beside the usual ones.

    Raises:
        RequestError: a source cannot be read, or holds no pair.
    """
    if model and (template == "chat" or (template == "auto" and model.has_template)):
        for reader in (*readers, *([held_out] if held_out else [])):
            reader.use_template(model.special_tokens if template == "auto" else [])
    special = SpecialTokens(model.special_tokens, model.ends) if model else SpecialTokens()
    hashes = [prompt_hash(pair, _pictures(pair).key) for _, pair in held_out or ()]
    measured = np.array(hashes, dtype=np.uint64)
    pictures = PictureTotals()
    ledger = Ledger()
    details: dict[str, list[str]] = {}
    for place, pair, seen, prerendered in _seen(readers, model):
        faults = {**pair_faults(pair, special), **(seen.found if seen else {})}
        if prerendered:
            faults.pop("special_tokens", None)
        lengths = seen.lengths if seen else _characters(pair)
        shown = _pictures(pair)
        pictures.add(shown)
        if shown.problem:
            faults["image"] = shown.problem
        if shown.key:
            faults.pop("blank_prompt", None)
        ledger.add(pair, place, faults, lengths, shown.key)
        for name, found in faults.items():
            if found and len(listed := details.setdefault(name, [])) < DETAILS:
                listed.append(f"{place}: {found}")
    duplicates, contradictions = ledger.compare(measured)
    details[DUPLICATE] = [f"{ledger.places[b]} repeats {ledger.places[a]}" for a, b in duplicates[:DETAILS]]
    details[CONTRADICTION] = [f"{ledger.places[a]} against {ledger.places[b]}" for a, b in contradictions[:DETAILS]]
    columns = {side: ledger.lengths(side) for side in _SIDES}
    spread = spreads(columns)
    return Examination(
        readers=readers,
        held_out=None if held_out is None else len(measured),
        ledger=ledger,
        unit="tokens" if model else "characters",
        spreads=spread,
        cuts=cuts(columns, model.positions, max_length) if model else [],
        findings=[*_unreadable(readers), *_findings(ledger, details), *_by_length(ledger, spread)],
        example=next((i for i in range(len(ledger)) if not ledger.of_pair(i)), 0),
        pictures=pictures,
    )


def _seen(readers: Sequence[PairReader], model: ModelView | None) -> Iterator[tuple[str, Pair, Seen | None, bool]]:
    """Place and pair of each row that is one, how the model sees it, and whether its text is a rendered one."""
    for reader in readers:
        if model is None:
            yield from ((place, pair, None, False) for place, pair in reader)
            continue
        for batch in _batches(iter(reader)):
            views = model.see([pair for _, pair in batch])
            for (place, pair), seen in zip(batch, views, strict=True):
                yield place, pair, seen, reader.prerendered


def _pictures(pair: Pair) -> Pictures:
    return look_at(pair.get("images") or ())


def _batches(pairs: Iterator[tuple[str, Pair]]) -> Iterator[list[tuple[str, Pair]]]:
    while batch := list(islice(pairs, BATCH)):
        yield batch


def _characters(pair: Pair) -> tuple[int, int, int]:
    prompt, chosen, rejected = (len(side_text(pair[side])) for side in _SIDES)
    return prompt, chosen, rejected


def _unreadable(readers: Sequence[PairReader]) -> Iterator[Finding]:
    if count := sum(reader.contents.misfits for reader in readers):
        reasons = [reason for reader in readers for reason in reader.reasons]
        rows = sum(reader.contents.rows for reader in readers)
        lines = tuple(f"{place}: {reason}" for place, reason in reasons[:DETAILS])
        yield Finding(UNREADABLE, count, rows, tuple(place for place, _ in reasons[:SHOWN]), lines)


def _findings(ledger: Ledger, details: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for name in KINDS:
        if count := int(np.count_nonzero(ledger.has(name))):
            shown = tuple(details.get(name, ()))
            yield Finding(name, count, len(ledger), ledger.first_places(name, SHOWN), shown)


def _by_length(ledger: Ledger, spread: Spreads) -> Iterator[Finding]:
    if spread.chosen_longer >= MOSTLY:
        yield Finding(LENGTH, round(spread.chosen_longer * len(ledger)), len(ledger), ())
