"""Errors that a person can act on: the value that was given, the rule it breaks, and the remedy."""

from __future__ import annotations

import os
from collections.abc import Sequence

SCREEN = 6000
"""Characters that the problems of one request take; of more, the first ones are listed and the others counted."""
LOST = ("closed by peer", "reset by peer", "remote process exited", "ncclRemoteError", "Broken pipe")
"""What gloo and NCCL say where another process has ended."""
GONE = "another process of the run is gone, and this one cannot continue without it"


class RequestError(ValueError):
    """What was asked for cannot be done as asked. The command line prints it and ends with status 2.

    Args:
        problems: one problem, or all problems found at once, each a sentence that names value, rule and remedy.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        found = [problems] if isinstance(problems, str) else list(problems)
        self.problems: list[str] = _told(found)
        if len(found) == 1:
            super().__init__(self.problems[0])
        else:
            numbered = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1))
            super().__init__(f"{len(found)} problems:\n{numbered}")


class RunError(RuntimeError):
    """A run cannot continue. The message says why and what to do; the command line prints it and ends with status 1.

    Attributes:
        resumable: whether continuing the run from its last checkpoint, once that is done, may succeed.
    """

    resumable = False


def lost_another(error: BaseException) -> bool:
    """Whether a collective operation failed because another process ended; gloo and NCCL say so in the text alone."""
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    return several and isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)


def encodable(text: object) -> str:
    """Return a text with escapes for what UTF-8 cannot hold: file names of any bytes, halves of surrogate pairs."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def _told(problems: Sequence[str]) -> list[str]:
    """The first problems, a screen of them, and how many more there are."""
    told: list[str] = []
    room = SCREEN
    for problem in map(encodable, problems):
        if told and len(problem) > room:
            return [*told, f"... and {len(problems) - len(told)} more problems"]
        told.append(problem if len(problem) <= SCREEN else f"{problem[:SCREEN]} ...")
        room -= len(problem)
    return told


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def counted_of(count: int, total: int, noun: str, one: str = "", many: str = "") -> str:
    """A part of a whole, and the verb that agrees: `1 of 4 rows is`, `2 of 4 rows are`, without a verb `1 of 1 row`."""
    said = one if count == 1 else many
    return f"{count:,} of {counted(total, noun)}" + (f" {said}" if said else "")


LONGEST_REASON = 400
SHOWN_NAMES = 3


def one_line(error: BaseException) -> str:
    """Return what another library's error says as one line of at most `LONGEST_REASON` characters, or its name."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."


def some_of(names: Sequence[str]) -> str:
    """Return the first names of a list, and an ellipsis if there are more than `SHOWN_NAMES`."""
    return ", ".join([*names[:SHOWN_NAMES], *["..."] * (len(names) > SHOWN_NAMES)])
