"""Output to the terminal.

Text from outside (file names, values, data, messages of libraries) is printed as text: never as markup, never with its
control characters. On a terminal a long message wraps below its beginning; in a pipe each message stays on one line.
"""

from __future__ import annotations

import codecs
import io
import math
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 120
PAGE_HEIGHT = 25


_SPELLED = {
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{GREATER-THAN OR EQUAL TO}": ">=",
    "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{BULLET}": "*",
    "\N{MIDDLE DOT}": "-",
    "\N{NO-BREAK SPACE}": " ",
    "\N{REPLACEMENT CHARACTER}": "?",
}
"""Letters that have a common spelling in ASCII."""


def spell_what_is_missing() -> None:
    """Let standard output and error spell letters that their encoding lacks, instead of failing: `...`, `\\u4f60`.

    An escape is one of JSON, so output in JSON stays what it is. Streams in UTF-8 lack nothing but lone surrogates.
    """
    codecs.register_error("wishbone-spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="wishbone-spelled")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(_SPELLED.get(letter) or _escape(letter) for letter in letters), error.end


def _escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def screen(*, error: bool = False) -> Console:
    """Standard output, or standard error, as a console."""
    stream = sys.stderr if error else sys.stdout
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdigit() else None if stream.isatty() else PIPE_WIDTH
    height = None if width is None else PAGE_HEIGHT  # on a dumb terminal rich takes both or none
    return Console(file=stream, highlight=False, width=width, height=height)


def plain(text: str, style: str = "") -> Text:
    """Text that is safe to print: control characters other than line breaks are replaced."""
    shown = "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    return Text(shown, style)


def say(text: str, *, marker: str = "", style: str = "", error: bool = False) -> None:
    """Print a message behind a marker such as `note: `, whose style is `style`."""
    console = screen(error=error)
    if not console.is_terminal:
        console.print(plain(marker, style) + plain(text), soft_wrap=True)
        return
    grid = Table.grid(padding=0)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(plain(marker, style), plain(text))
    console.print(grid)


def refuse(problems: Sequence[str]) -> None:
    """Print what is wrong with a request, on standard error."""
    if len(problems) == 1:
        say(problems[0], marker="wishbone: ", style="bold red", error=True)
        return
    say(f"{len(problems)} problems", marker="wishbone: ", style="bold red", error=True)
    width = len(str(len(problems)))
    for number, problem in enumerate(problems, 1):
        say(problem, marker=f"  {number:>{width}}. ", style="bold", error=True)


def binary_size(size: int) -> str:
    """A size in bytes as GiB or, below 1 GiB, as MiB or, below 1 MiB, as KiB."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{math.ceil(size / 2**10)} KiB"
