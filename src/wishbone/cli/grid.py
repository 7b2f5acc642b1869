"""The combinations of a sweep, from settings with several values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from wishbone.config.document import show
from wishbone.config.explain import setting_meant
from wishbone.errors import RequestError

MOST_RUNS = 500
OWN = ("output.dir", "training.reference_store")
"""Settings that a sweep makes itself."""


@dataclass(frozen=True)
class Combination:
    """One run of a grid: a name for its directory, and its overrides; `varied` are those of the grid, by short name."""

    name: str
    overrides: list[str]
    varied: dict[str, str]


def grid(settings: Sequence[str]) -> list[Combination]:
    """Return every combination of settings, the last one changing fastest.

    Raises:
        RequestError: a setting has no value or stands twice, or there are more than `MOST_RUNS` combinations.
    """
    values: dict[str, list[str]] = {}
    problems = []
    waiting = list(settings)
    while waiting:
        setting = waiting.pop(0)
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals and waiting and "=" not in waiting[0] and setting_meant(name, exactly=True):
            problems.append(f"{setting!r}: write it without spaces: {show(f'{setting_meant(name)}={waiting.pop(0)}')}")
        elif not equals or not text.strip() or name.count(".") != 1:
            problems.append(f"{setting!r}: write it as section.key=value,value, such as preference.beta=0.05,0.1")
        elif name in values:
            problems.append(f"{name} stands twice; write its values with commas between them")
        elif name in OWN:
            problems.append(f"{name} is the sweep's own: --output names its directory, and all runs share one store")
        else:
            values[name] = split_values(text)
    if problems:
        raise RequestError(problems)
    count = 1
    for found in values.values():
        count *= len(found)
    if count > MOST_RUNS:
        raise RequestError(f"{count:,} runs are more than {MOST_RUNS}; give fewer values")
    varied = [name for name, found in values.items() if len(found) > 1]
    combinations = []
    for chosen in product(*values.values()):
        pairs = dict(zip(values, chosen, strict=True))
        shown = {name.partition(".")[2]: pairs[name] for name in varied}
        words = [f"{key}-{_word(value)}" for key, value in shown.items()]
        overrides = [f"{name}={value}" for name, value in pairs.items()]
        combinations.append(Combination("_".join(words) or "run", overrides, shown))
    names = [one.name for one in combinations]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RequestError(f"the same values stand twice: {', '.join(sorted(twice))}; give each value once")
    return combinations


def split_values(text: str) -> list[str]:
    """Return the values of a text, divided at commas outside of brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            values.append("")
            continue
        values[-1] += letter
    return [value.strip() for value in values]


def _word(value: str) -> str:
    """A value as part of a directory's name."""
    return re.sub(r"[^\w.+-]+", "-", value).strip("-")[:60] or "empty"
