"""The lengths of all pairs as small histograms, and what several limits would cut.

A histogram has two bars for each doubling of the length: bar b counts lengths n with b = floor(2 log2 n). Lengths of
0 are not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

BARS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
PLAIN_BARS = " .:-=+*#@"
LIMITS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True)
class Spread:
    """Lengths of one side of all pairs.

    Attributes:
        mean, median, p95, longest: of the lengths; each percentile is the length of some pair.
        bars: how many pairs each bar of the histogram counts; the sides of a data set have the same bars.
    """

    mean: float
    median: int
    p95: int
    longest: int
    bars: tuple[int, ...]


@dataclass(frozen=True)
class Spreads:
    """Lengths of "prompt", "chosen" and "rejected".

    Attributes:
        sides: of each side.
        edges: the least length of each bar, and the end of the last one.
        chosen_longer, equally_long: shares of the pairs.
    """

    sides: Mapping[str, Spread]
    edges: tuple[int, ...]
    chosen_longer: float
    equally_long: float


def spreads(lengths: Mapping[str, Counts]) -> Spreads:
    """Return how the lengths of prompt, chosen and rejected are spread; there must be a pair."""
    filled = np.concatenate([side[side > 0] for side in lengths.values()])
    least, most = (int(filled.min()), int(filled.max())) if len(filled) else (1, 1)
    first, last = (int(np.floor(2 * np.log2(n))) for n in (least, most))
    edges = np.unique(np.ceil(2 ** (np.arange(first, last + 2) / 2)).astype(np.int64))
    sides = {}
    for name, side in lengths.items():
        median, p95, longest = np.percentile(side, [50, 95, 100], method="inverted_cdf").tolist()
        bars = np.histogram(side[side > 0], bins=np.append(edges[:-1], most + 1))[0]
        sides[name] = Spread(float(side.mean()), int(median), int(p95), int(longest), tuple(bars.tolist()))
    chosen, rejected = lengths["chosen"], lengths["rejected"]
    return Spreads(sides, tuple(edges.tolist()), float((chosen > rejected).mean()), float((chosen == rejected).mean()))


def drawn(bars: tuple[int, ...], glyphs: str = BARS) -> str:
    """A histogram in one line; the highest bar has full height, a bar that counts something is never empty."""
    highest = max(max(bars), 1)
    return "".join(glyphs[0 if not count else max(1, round(8 * count / highest))] for count in bars)


@dataclass(frozen=True)
class Cut:
    """What `data.max_length` cuts, with `data.truncation: keep_start`.

    Attributes:
        limit: tokens of prompt and one completion.
        pairs: with a longer sequence.
        tokens: share of the tokens of all sequences that are cut.
        lost: pairs of which no completion is left.
    """

    limit: int
    pairs: int
    tokens: float
    lost: int


def cuts(lengths: Mapping[str, Counts], positions: int | None = None, asked: int | None = None) -> list[Cut]:
    """What each limit of `LIMITS`, the positions of a model and `asked` cut, up to the first that cuts nothing."""
    sequences = [lengths["prompt"] + lengths[side] for side in ("chosen", "rejected")]
    total = sum(int(sequence.sum()) for sequence in sequences)
    found: list[Cut] = []
    for limit in sorted({*LIMITS, *(limit for limit in (positions, asked) if limit)}):
        over = [np.maximum(sequence - limit, 0) for sequence in sequences]
        pairs = int(np.count_nonzero(over[0] + over[1]))
        cut = sum(int(tokens.sum()) for tokens in over)
        lost = int(np.count_nonzero(lengths["prompt"] >= limit))
        found.append(Cut(limit, pairs, cut / total if total else 0.0, lost))
        if not pairs and limit >= (asked or 0):
            break
    return found
