"""Which elements of a head turn together, and where their angles lie: four ways that model families write it."""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

Form = Literal["halves", "neighbours", "neighbours with their angles", "neighbours to halves", "halves with one angle"]
"""How families lay out the pairs of a head:

    "halves"                        element i turns with i + turned / 2                        Llama and most others
    "neighbours"                    2i turns with 2i + 1, angles are those of "halves"         GLM, Ernie
    "neighbours with their angles"  2i turns with 2i + 1, and so lie their angles              Cohere
    "neighbours to halves"          2i turns with 2i + 1, and they come out as "halves"        DeepSeek
    "halves with one angle"         i turns with i + turned / 2, and both have angle i         gpt-oss
"""


class Placement(NamedTuple):
    """Where the two elements of pair i lie: at i * step and i * step + gap."""

    step: int
    gap: int


class Placements(NamedTuple):
    """Where pairs lie in what is turned, in what comes out, and in cos and sin."""

    inputs: Placement
    outputs: Placement
    angles: Placement


@cache
def placements(form: Form, turned: int) -> Placements:
    """Return where the pairs of `turned` elements lie."""
    halves, neighbours = Placement(1, turned // 2), Placement(2, 1)
    by_form: dict[Form, Placements] = {
        "halves": Placements(halves, halves, halves),
        "neighbours": Placements(neighbours, neighbours, halves),
        "neighbours with their angles": Placements(neighbours, neighbours, neighbours),
        "neighbours to halves": Placements(neighbours, halves, halves),
        "halves with one angle": Placements(halves, halves, Placement(1, 0)),
    }
    return by_form[form]


def turned_elements(form: Form, angles: int) -> int:
    """Return how many elements of a head turn by a token's `angles`, the last dimension of cos and sin."""
    return 2 * angles if form == "halves with one angle" else angles
