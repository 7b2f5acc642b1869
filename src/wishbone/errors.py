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
