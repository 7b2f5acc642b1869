"""NaN and infinity in JSON, which has no word for them: as null, or spelled where they are read again.

Python writes `NaN` and `Infinity`, which other readers refuse.
"""

from __future__ import annotations

import math
from typing import Any

_SPELLED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def without_nan(value: Any) -> Any:
    """Return a value of JSON with null for every number that is not finite."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def spelled(value: Any) -> Any:
    """Return a value of JSON with "nan", "inf" or "-inf" for every number that is not finite."""
    if isinstance(value, dict):
        return {name: spelled(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(item) for item in value]
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def read_spelled(value: Any) -> Any:
    """Return what `spelled` was given; no text of it may be one of the three words."""
    if isinstance(value, dict):
        return {name: read_spelled(item) for name, item in value.items()}
    if isinstance(value, list):
        return [read_spelled(item) for item in value]
    return _SPELLED.get(value, value) if isinstance(value, str) else value
