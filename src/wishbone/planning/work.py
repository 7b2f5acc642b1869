"""What a step computes, as the parts of its time take it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What a step computes on one device.

    Attributes:
        tokens: of all rows.
        scored: those whose log-probability is computed.
        contexts: tokens that each token attends to, added up.
        passes: forward and backward passes over the tokens: 3 with adapters and a reference that is computed.
        recomputed: share of the layers that run forward once more.
        tower: operations of a vision tower, all of its passes together.
        rows: that the tokens lie in.
    """

    tokens: float
    scored: float
    contexts: float
    passes: float
    recomputed: float = 0.0
    tower: float = 0.0
    rows: float = 1.0
