"""Axes: the range that a chart shows, and the positions and labels of its ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NICE = (1, 2, 2.5, 5, 10)
TICKS = 5
SMALLEST_SPAN = 1e-250


@dataclass(frozen=True)
class Axis:
    """A range of values from pixel `start` to pixel `end` (which may be smaller than `start`), with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear_axis(values: Sequence[float], start: float, end: float, *, whole: bool = False) -> Axis:
    """Return an axis that shows all `values` (finite) and has about five ticks at round numbers.

    Args:
        values: values that must be visible; at least one.
        start: pixel of the lowest value.
        end: pixel of the highest value.
        whole: ticks only at whole numbers, and no margin at the ends (for optimizer steps).
    """
    low, high = min(values), max(values)
    if high - low <= max(SMALLEST_SPAN, 1e-9 * max(abs(low), abs(high))):
        room = 0.5 if whole or abs(low) <= SMALLEST_SPAN else abs(low) * 0.1
        low, high = low - room, high + room
    elif not whole:
        room = 0.04 * (high - low)
        low, high = low - room, high + room
    step = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(step))
    step = next(nice * power for nice in NICE if nice * power >= step * 0.999)
    if whole:
        step = max(1.0, float(round(step)))
    places = [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, start, end, tuple(places), tuple(tick_label(place, step) for place in places))


def log_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Return a logarithmic axis that shows all `values` (positive), with ticks at powers of ten."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    every = max(1, math.ceil((high - low) / 6))
    places = tuple(10.0**power for power in range(low, high + 1, every))
    return Axis(10.0**low, 10.0**high, start, end, places, tuple(f"{place:g}" for place in places), log=True)


def tick_label(value: float, step: float) -> str:
    """Return the label of a tick, with enough digits to distinguish ticks that are `step` apart."""
    if abs(value) < step / 1000:
        return "0"
    sign, value = ("\N{MINUS SIGN}" if value < 0 else ""), abs(value)
    if value >= 1e6 or step < 1e-4:
        digits = max(0, math.floor(math.log10(value)) - math.floor(math.log10(step)) + 1)
        mantissa, exponent = f"{value:.{digits}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{sign}{mantissa}e{int(exponent)}"
    digits = next((d for d in range(6) if math.isclose(round(step, d), step, rel_tol=1e-6)), 6)
    return f"{sign}{value:,.{digits}f}"
