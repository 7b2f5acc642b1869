"""Results as tables: on a terminal, and as Markdown for the documentation.

A table is made once, as columns and rows of text, and written in either form. Reasons of failures come from libraries
and are text, whatever is in them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.agreement import compare
from benchmarks.children import Row
from benchmarks.results import Results

LONGEST_CELL = 120
WIDTH_OF_FILES = 200


@dataclass(frozen=True)
class Table:
    """Columns (right-aligned from the `words`-th on) and rows of text, and lines below them on a terminal."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
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


def throughput_table(results: Results) -> Table:
    """One row for each system and case, by size and case, failures included."""
    columns = (
        "system", "case", "pairs/s", "x Unsloth", "TFLOP/s", "of ceiling", "peak GiB", "first step s",
        "new compilations", "step-1 loss", "tokens a pair",
    )  # fmt: skip
    measured = results.of("throughput")
    order = {place: index for index, place in enumerate(dict.fromkeys((row["size"], row["case"]) for row in measured))}
    rows = sorted(measured, key=lambda row: order[row["size"], row["case"]])
    return Table("Throughput", columns, [_throughput_row(row, results) for row in rows], notes=_failures(measured))


def _failures(rows: list[Row]) -> tuple[str, ...]:
    return tuple(
        f"{row['system']}, {row['size'] or ''} {row['case']}: {failure(row)}" for row in rows if row["status"] != "ok"
    )


def _throughput_row(row: Row, results: Results) -> tuple[str, ...]:
    start = (row["system"], f"{row['size']} {row['case']}")
    if row["status"] != "ok":
        return (*start, "failed", *[""] * 8)
    return (
        *start,
        f"{row['pairs_per_s']:.2f}",
        _times(row, baseline(row, results)),
        f"{row['useful_tflops']:.0f}" if row["useful_tflops"] >= 1 else f"{row['useful_tflops']:.3f}",
        _share(share_of_ceiling(row, results)),
        f"{row['peak_gib']:.1f}",
        f"{row['first_step_seconds']:.0f}",
        "{graphs} + {kernels}".format(**row["compiled_later"]),
        f"{row['losses'][0]:.4f}" if row["losses"] else "",
        f"{row['tokens_per_pair']['unique']:.0f} of {row['tokens_per_pair']['two_sequences']:.0f}",
    )


def baseline(row: Row, results: Results) -> Row | None:
    """Return Unsloth's row for the same case: with the same form of weights, else in bfloat16."""
    weights = next((part for part in ("nf4", "fp8") if f"-{part}" in row["system"]), "bf16")
    for form in (weights, "bf16"):
        found = results.find("throughput", row["size"], f"unsloth-{form}", row["case"])
        if found:
            return found
    return None


def share_of_ceiling(row: Row, results: Results) -> float | None:
    """Return useful operations over the card's best rate in the arithmetic of the row's matrix products."""
    ceilings = results.find("ceilings", None, "", "this card")
    rate = ceilings and ceilings["fp8_tflops" if "-fp8" in row["system"] else "bf16_tflops"]
    return row["useful_tflops"] / rate if rate else None


def longest_table(results: Results) -> Table:
    """One row for each system and limit."""
    columns = ("system", "limit", "longest pair", "too long", "peak GiB", "seconds a step", "ended by")
    rows = results.of("longest")
    return Table("Longest pair", columns, [_longest_row(row) for row in rows], notes=_failures(rows))


def _longest_row(row: Row) -> tuple[str, ...]:
    start = (row["system"], f"{row['size']} {row['case']}")
    if not row.get("tokens"):
        return (*start, "failed" if row["status"] != "ok" else "none", *[""] * 4)
    best = next(attempt for attempt in row["attempts"] if attempt["tokens"] == row["tokens"])
    return (
        *start,
        f"{row['tokens']:,}",
        f"{row['too_long']:,}" if row["too_long"] else "",
        f"{best['peak_gib']:.1f}",
        f"{best['seconds']:.1f}",
        row.get("stopped_by", "failed"),
    )


def quality_table(results: Results) -> Table:
    """Means and standard deviations over seeds, and whether a system agrees with the first one."""
    columns = (
        "system", "training", "held-out accuracy", "held-out loss", "held-out margin", "last epoch's loss", "pairs/s",
        "peak GiB",
    )  # fmt: skip
    rows = results.of("quality")
    firsts: dict[tuple[Any, str], Row] = {}
    for row in rows:
        if row["status"] == "ok":
            firsts.setdefault((row["size"], row["case"]), row)
    cells = [_quality_row(row, firsts.get((row["size"], row["case"]))) for row in rows]
    return Table(
        "Quality: mean and standard deviation over seeds, and the difference to the first system", columns, cells
    )


FIGURES = ("heldout_accuracy", "heldout_loss", "heldout_margin", "last_epoch_loss")


def _quality_row(row: Row, first: Row | None) -> tuple[str, ...]:
    start = (row["system"], row["case"])
    if row["status"] != "ok" or first is None:
        return (*start, "failed", *[""] * 5)
    figures = [_figure(row, first, name) for name in FIGURES]
    return (*start, *figures, f"{row['pairs_per_s']:.1f}", f"{row['peak_gib']:.2f}")


def _figure(row: Row, first: Row, name: str) -> str:
    values = row[name]
    mean = fmean(values)
    spread = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5
    text = f"{mean:.4f} ± {spread:.4f}"
    if row is first:
        return text
    granularity = 1 / row["training"]["heldout"] if name == "heldout_accuracy" else 0.0
    found = compare(values, first[name], granularity)
    if found is None:
        return f"{text} ({mean - fmean(first[name]):+.4f})"
    return f"{text} ({found.difference:+.4f}, {'agrees' if found.agree else 'DIFFERS'} within {found.allowed:.4f})"


def ceilings_table(results: Results) -> Table:
    """One row for each shape, and the copy."""
    rows: list[tuple[str, ...]] = []
    for row in results.of("ceilings"):
        if row["status"] != "ok":
            rows.append(("failed", "", ""))
            continue
        for rate in row["rates"]:
            fp8 = rate.get("fp8_tflops")
            shape = " x ".join(map(str, rate["shape"]))
            rows.append((shape, f"{rate['bf16_tflops']:.4g}", f"{fp8:.4g}" if fp8 else ""))
        rows.append(("copy, read and written", f"{row['copy_tb_per_s']:.3g} TB/s", ""))
    columns = ("rows x inner x columns", "bf16 TFLOP/s", "FP8 TFLOP/s")
    return Table("Ceilings", columns, rows, words=1, notes=_failures(results.of("ceilings")))


def plan_table(results: Results) -> Table:
    """One row for each form of weights, budget and treatment of activations: reckoned and measured."""
    columns = (
        "weights", "activations", "row tokens", "reckoned GiB", "measured GiB", "difference", "run reckoned",
        "run measured", "difference",
    )  # fmt: skip
    measured = results.of("plan")
    rows = [
        (
            f"{row['size']} {row['system'].removeprefix('wishbone-')} {row['method']}",
            one["activations"],
            f"{one['budget']:,}",
            f"{one['estimate_gib']:.2f}",
            f"{one['peak_gib']:.2f}",
            _signed(one["error"]),
            f"{one['run_estimate_gib']:.2f}",
            f"{one['run_peak_gib']:.2f}",
            _signed(one["run_error"]),
        )
        for row in measured
        for one in row.get("measurements", ())
    ]
    return Table("Memory, reckoned and measured", columns, rows, notes=_failures(measured))


TABLES: dict[str, Callable[[Results], Table]] = {
    "throughput": throughput_table,
    "longest": longest_table,
    "quality": quality_table,
    "ceilings": ceilings_table,
    "plan": plan_table,
}


def show(results: Results, *kinds: str) -> None:
    """Print tables of these kinds, those that have a row."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
    for kind in kinds:
        if results.of(kind):
            TABLES[kind](results).print(console)


def line_of(row: Row) -> Text:
    """Return a row in one line, for those who wait."""
    name = " ".join(filter(None, [row["kind"], row["size"], row["system"], row["case"]]))
    what = (
        "pairs_per_s", "tokens", "peak_gib", "first_step_seconds", "heldout_accuracy", "bf16_tflops", "fp8_tflops",
        "largest_error",
    )  # fmt: skip
    found = ", ".join(f"{key} {row[key]}" for key in what if key in row)
    if row["status"] != "ok":
        found = ", ".join(filter(None, [f"FAILED, {failure(row)}", found]))
    return Text(f"{name}: {found} ({row.get('seconds', 0):.0f} s)")


def failure(row: Row) -> str:
    """Return why a row has no result, in one line."""
    text = f"{row.get('reason', 'failed')} (at: {row.get('phase', 'the start')})"
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 2] + " …"


def _times(row: Row, other: Row | None) -> str:
    return f"{row['pairs_per_s'] / other['pairs_per_s']:.2f}" if other and other is not row else ""


def _signed(share: float | None) -> str:
    return "" if share is None else f"{share:+.1%}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
