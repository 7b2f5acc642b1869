"""Errors that a person can act on: the value that was given, the rule it breaks, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence


class RequestError(ValueError):
    """What was asked for cannot be done as asked. The command line prints it and ends with status 2.

    Args:
        problems: one problem, or all problems found at once, each a sentence that names value, rule and remedy.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            numbered = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1))
            super().__init__(f"{len(self.problems)} problems:\n{numbered}")


LONGEST_REASON = 400


def one_line(error: BaseException) -> str:
    """Return what another library's error says as one line of at most `LONGEST_REASON` characters, or its name."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
