"""Which parts of a model run fused, on how many layers, and why the others run the model's own code.

When a model family or a new release of transformers does something that the fused forms do not know, a run gets slower
and nothing fails. So every run counts. A part counts as fused when a pass has run it so, not when it was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from wishbone.fused.parts import Part

NO_GPU = "layers stay as they are where there is no CUDA GPU, as fused ones gain little there"
LAYER_NORM = "PyTorch's own LayerNorm is one pass already"
ON_PURPOSE = frozenset({NO_GPU, LAYER_NORM})
"""Reasons that cost nothing."""
COSTS: dict[Part, str] = {
    "rotary embedding": "A step of an 8B model takes about 8 % longer in bfloat16 and 21 % longer in FP8."
}
"""What was measured of a part that runs the model's own code."""
PLURALS: dict[Part, str] = {"attention": "attention layers", "rotary embedding": "layers with a rotary embedding",
    "norm": "norms", "MLP": "MLPs", "linear group": "groups of linear layers", "experts": "layers of experts",
    "recurrence": "recurrent layers", "output head": "output heads"}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """One part of one layer.

    Attributes:
        part: its kind.
        name: of the module, in its model.
        why_not: why it runs the model's own code; None where it runs fused.
    """

    part: Part
    name: str
    why_not: str | None = None


@dataclass(frozen=True)
class PartCoverage:
    """One kind of part.

    Attributes:
        part: its kind.
        layers: how many layers have it.
        fused: on how many it runs fused.
        why_not: why it does not on the others, with the number of layers; the most frequent reason first.
    """

    part: Part
    layers: int
    fused: int
    why_not: tuple[tuple[str, int], ...]

    def warning(self, said: str | None = None) -> str | None:
        """Return the loss of speed in one line; None where there is none.

        Args:
            said: a reason that the user has read already.
        """
        reasons = [(reason, count) for reason, count in self.why_not if reason not in ON_PURPOSE and reason != said]
        if not reasons:
            return None
        count = sum(count for _, count in reasons)
        because = "; ".join(reason if len(reasons) == 1 else f"{reason} ({count})" for reason, count in reasons)
        cost = f" {COSTS[self.part]}" if self.part in COSTS else ""
        return (
            f"{count} of {self.layers} {PLURALS[self.part]} run the model's own code, which is slower: {because}.{cost}"
        )


@dataclass(frozen=True)
class Coverage:
    """All kinds of parts that a model has."""

    parts: tuple[PartCoverage, ...]

    @staticmethod
    def of(sites: Iterable[Site]) -> Coverage:
        """Return the count of parts."""
        by_part: dict[Part, list[Site]] = {part: [] for part in get_args(Part)}
        for site in sites:
            by_part[site.part].append(site)
        return Coverage(tuple(_count(part, found) for part, found in by_part.items() if found))

    def warnings(self, said: str | None = None) -> list[str]:
        """Return one line for each kind of part that loses speed, without reasons that were already logged."""
        return [line for part in self.parts if (line := part.warning(said)) is not None]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the table for `summary.json`."""
        return [
            {
                "part": one.part,
                "layers": one.layers,
                "fused": one.fused,
                "why_not": [{"reason": reason, "layers": count} for reason, count in one.why_not],
            }
            for one in self.parts
        ]


def _count(part: Part, sites: list[Site]) -> PartCoverage:
    reasons = Counter(site.why_not for site in sites if site.why_not is not None)
    return PartCoverage(part, len(sites), len(sites) - reasons.total(), tuple(reasons.most_common()))
