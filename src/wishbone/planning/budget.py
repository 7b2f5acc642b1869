"""Token budget and room of a row before anything is measured.

A transformer layer of width H with an MLP of width I keeps about 18 H + 5 I elements a token for the backward pass: the
norms' inputs and outputs, queries, keys and values before and after rotation, attention and projection outputs, the
adapters' inputs, and gate, up, activation and product of the MLP. For SmolLM2-135M in float32 that is 2.2 MB a token,
where 1.8 MB were measured. A recomputed layer keeps its input, H elements.

On a CPU this is what training uses. A GPU is measured instead (`engine/profiling.py`).
"""

from __future__ import annotations

from wishbone.engine.execution import Room

ROW_TOKENS = {"cuda": 8192, "cpu": 1024}
"""A GPU is filled by some thousand tokens; a CPU gains nothing from longer rows and pays for them in memory."""

SHARE_OF_FREE_MEMORY = {"cuda": 0.7, "cpu": 0.25}
"""A GPU belongs to the run; the memory of a machine is shared with whatever else runs there."""


def token_budget(asked: int | str, device_type: str) -> int:
    """Return the token budget of a row: the one asked for, or for "auto" what suits the kind of device."""
    if asked == "auto":
        return ROW_TOKENS.get(device_type, ROW_TOKENS["cpu"])
    return int(asked)


def estimated_room(
    free_bytes: int, device_type: str, *, layers: int, hidden: int, inner: int | None, element_bytes: int
) -> Room:
    """Return the room of a row by this module's rule.

    Args:
        free_bytes: memory free on the device once the model is there.
        device_type: "cuda" or "cpu".
        layers, hidden: of the model, and its width.
        inner: width of its MLPs; None takes four times `hidden`.
        element_bytes: bytes of an element of an activation.
    """
    share = SHARE_OF_FREE_MEMORY.get(device_type, SHARE_OF_FREE_MEMORY["cpu"])
    layer = (18 * hidden + 5 * (inner or 4 * hidden)) * element_bytes
    return Room(share * free_bytes, layers * hidden * element_bytes, layer)
