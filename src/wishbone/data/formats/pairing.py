"""From scored completions to pairs of a better and a worse one.

Of n completions with scores s, `best_worst` makes one pair (the highest against the lowest), `best_rest` n - 1 (the
highest against every other) and `all` every two with different scores, at most n (n - 1) / 2. Two completions with the
same score are no pair, nor are two whose scores differ by less than the least margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

Pairs = Literal["best_worst", "best_rest", "all"]

_DIGITS = 9
"""Differences are compared after rounding: 4.3 - 4.0 is 0.3."""


@dataclass(frozen=True)
class PairRule:
    """Which two scored completions become a pair.

    Attributes:
        pairs: "best_worst", "best_rest" or "all".
        least_margin: least difference of the scores (of ranks: of the places) of a pair, at least 0.
    """

    pairs: Pairs = "best_worst"
    least_margin: float = 0.0


class Matches(NamedTuple):
    """The pairs of a row.

    Attributes:
        pairs: (better, worse), indices of completions.
        ties: pairs of the rule that have the same score.
        narrow: pairs of the rule that differ by less than the least margin.
    """

    pairs: list[tuple[int, int]]
    ties: int
    narrow: int


def match(scores: Sequence[float], rule: PairRule) -> Matches:
    """The pairs of completions with these scores, the better one first; of equal scores the first one counts.

    Args:
        scores: at least two, finite, higher is better.
        rule: which pairs, and their least margin.
    """
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    match rule.pairs:
        case "best_worst":
            asked = [(order[0], min(range(len(scores)), key=scores.__getitem__))]
        case "best_rest":
            asked = [(order[0], other) for other in order[1:]]
        case "all":
            asked = list(combinations(order, 2))
    margins = [round(scores[better] - scores[worse], _DIGITS) for better, worse in asked]
    kept = [pair for pair, margin in zip(asked, margins, strict=True) if margin > 0 and margin >= rule.least_margin]
    ties = sum(margin <= 0 for margin in margins)
    return Matches(kept, ties, len(asked) - len(kept) - ties)
