"""NaN and infinity in JSON, which has no word for them: as null, or spelled where they are read again.

Python writes `NaN` and `Infinity`, which other readers refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

_SPELLED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def without_nan(value: Any) -> Any:
    """Return a value of JSON with null for every number that is not finite."""
    return _changed(value, lambda one: None if _is_not_finite(one) else one)


def spelled(value: Any) -> Any:
    """Return a value of JSON with "nan", "inf" or "-inf" for every number that is not finite."""
    return _changed(value, lambda one: str(float(one)) if _is_not_finite(one) else one)


def read_spelled(value: Any) -> Any:
    """Return what `spelled` was given; no text of it may be one of the three words."""
    return _changed(value, lambda one: _SPELLED.get(one, one) if isinstance(one, str) else one)


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value of JSON with `change` of every text, number, truth value and null in it."""
    if isinstance(value, dict):
        return {name: _changed(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(item, change) for item in value]
    return change(value)
