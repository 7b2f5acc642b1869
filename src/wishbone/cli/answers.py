"""Answers before and after a run, on the terminal.

A run directory may come from a stranger, so what stands in its `answers.json` may have any form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from wishbone.cli.console import plain, screen
from wishbone.report.sections import message_text

NARROWEST_SIDE = 24


def print_answer(number: int, prompt: Any, before: str, after: str, *, error: bool = False) -> None:
    """A prompt, as text or turns, and its answers: in two columns, or below each other where those would be narrow."""
    console = screen(error=error)
    turns = prompt if isinstance(prompt, list) and prompt else [prompt]
    named = [message_text(turn) for turn in turns]
    last = len(named) - 1
    title = Text("\n").join(
        plain(f"{number}. " if i == last else f"{role}: ", "bold") + _shown(text)
        for i, (role, text) in enumerate(named)
    )
    console.print(title)
    table = Table(expand=True, show_lines=True)
    first, second = _shown(before), _shown(after)
    if console.width >= 2 * NARROWEST_SIDE + 7:
        table.add_column("Before", ratio=1, overflow="fold")
        table.add_column("After", ratio=1, overflow="fold")
        table.add_row(first, second)
    else:
        table.add_column("", no_wrap=True)
        table.add_column("", ratio=1, overflow="fold")
        table.show_header = False
        table.add_row("Before", first)
        table.add_row("After", second)
    console.print(table)


def print_recorded(number: int, answer: Mapping[str, Any], *, error: bool = False) -> None:
    """The same of an entry of a run's `answers.json`."""
    before, after = sides(answer)
    print_answer(number, answer.get("prompt") or "", before, after, error=error)


def sides(answer: Mapping[str, Any]) -> tuple[str, str]:
    """The texts of an entry of `answers.json` before and after."""
    before, after = (str(answer.get(side) or "") for side in ("before", "after"))
    return before, after


def _shown(text: str) -> Text:
    """Text of a model or a data set, safe to print; tabs become spaces, an empty text becomes `(empty)`."""
    return plain(text.expandtabs(4)) if text.strip() else Text("(empty)", "dim")
