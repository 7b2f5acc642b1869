"""One table, written to a terminal or as Markdown for the documentation.

Cells are text. Some of it comes from libraries (reasons of failures), so neither form interprets it as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.harness.results import Row, failure


@dataclass(frozen=True)
class Table:
    """Columns and rows of text.

    Attributes:
        title: above the table on a terminal.
        columns: headings.
        rows: cells, as many as columns.
        words: how many columns are words; the others are numbers, aligned to the right.
        notes: lines below the table on a terminal.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: int = 2
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rules = ["---" if index < self.words else "---:" for index in range(len(self.columns))]
        lines = [self.columns, tuple(rules), *self.rows]
        return "".join("| " + " | ".join(map(_markdown_cell, line)) + " |\n" for line in lines)

    def print(self, console: Console) -> None:
        """Write the table to a terminal."""
        shown = RichTable(title=Text(self.title), title_justify="left")
        for index, column in enumerate(self.columns):
            shown.add_column(Text(column), justify="left" if index < self.words else "right", overflow="fold")
        for row in self.rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
        for note in self.notes:
            console.print(Text(note), soft_wrap=True)


def _markdown_cell(text: str) -> str:
    text = " ".join(text.split())
    for letter in "\\|<>*_`[]":
        text = text.replace(letter, f"\\{letter}" if letter != "<" else "&lt;")
    return text


def failures(rows: list[Row]) -> tuple[str, ...]:
    """Return a line for each row that has no result."""
    return tuple(
        f"{row['system']}, {row['size'] or ''} {row['case']}: {failure(row)}" for row in rows if row["status"] != "ok"
    )
