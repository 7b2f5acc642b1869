"""How many tokens a row may hold."""

from __future__ import annotations

ROW_TOKENS = {"cuda": 8192, "cpu": 1024}
"""A GPU is filled by some thousand tokens; a CPU gains nothing from longer rows and pays for them in memory."""


def token_budget(asked: int | str, device_type: str) -> int:
    """Return the token budget of a row: the number asked for, or for "auto" what suits the kind of device."""
    if asked == "auto":
        return ROW_TOKENS.get(device_type, ROW_TOKENS["cpu"])
    return int(asked)
