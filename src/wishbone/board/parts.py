"""What a board shows, in parts: an overview of all runs, their curves over each other, and the views of each run.

A part is HTML that is escaped by construction (`wishbone.report.markup`). The page replaces a part only where its hash
is another one, so what is open or scrolled stays as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

from wishbone.board.runs import Shown
from wishbone.report import sections, views
from wishbone.report.chart import Chart, Line, Tone, draw
from wishbone.report.fused_table import fused_table
from wishbone.report.markup import Markup, element, join
from wishbone.report.outcome import accuracy, in_words
from wishbone.report.run_directory import HELDOUT_PREFIX, RunRecord
from wishbone.report.series import Series, finite

LONGEST_NAME = 50
TONES: tuple[Tone, ...] = get_args(Tone)
OVERLAID = (
    ("loss", "Loss", "Compare runs with the same loss only.", False),
    ("rewards/margins", "Reward margin", "Chosen minus rejected reward. It grows with beta, too.", False),
    ("accuracy", "Accuracy", "Share of pairs whose chosen answer has the higher reward.", True),
    ("rewards/chosen", "Chosen reward", "Should rise or stay.", False),
    ("rewards/rejected", "Rejected reward", "Should fall.", False),
    ("entropy", "Entropy", "Nats per token; a steep fall often means repetition.", False),
)
"""Metric, title, how to read it, and whether it is a share."""

PARTS: dict[str, Callable[[RunRecord], Markup | None]] = {
    "head": sections.heading,
    "error": sections.error_log,
    "findings": sections.findings,
    "answers": sections.answers,
    "result": sections.result,
    "charts": sections.charts,
    "guard": views.guard,
    "over-time": views.answers_over_time,
    "pairs": views.pairs,
    "memory": views.memory,
    "fused": fused_table,
    "settings": sections.settings,
    "environment": sections.environment,
    "next": views.next_steps,
}
"""Views of one run, in the order of the page."""


def board_parts(runs: Sequence[Shown]) -> dict[str, dict[str, Markup]]:
    """Return the parts of a board by group: `all`, and one group for each run by its id."""
    groups = {"all": {"overview": overview(runs), "curves": overlaid(runs)}}
    for shown in runs:
        own = {name: view(shown.record) or Markup("") for name, view in PARTS.items()}
        groups[shown.id] = {name: _numbered(part, shown.id) for name, part in own.items()}
    return groups


def digest(part: str) -> str:
    """Return a short hash of a part."""
    return hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _numbered(part: Markup, name: str) -> Markup:
    """A part whose ids, which charts refer to, are its own on the page."""
    for title in ("title", "desc"):
        part = Markup(part.replace(f"-{title} ", f"-{title}-{name} ").replace(f'-{title}"', f'-{title}-{name}"'))
    return part


def overview(runs: Sequence[Shown]) -> Markup:
    """Return a table with a row for each run."""
    if not runs:
        return element("p", "No run has begun here yet. A run appears as soon as one begins.", class_="empty")
    names = ("Run", "Status", "Step", "Loss", "Held-out loss", "Held-out margin", "Held-out accuracy", "Peak GiB")
    head = element("tr", *(element("th", name, scope="col") for name in names))
    rows = [_row(shown, TONES[at % len(TONES)]) for at, shown in enumerate(runs)]
    table = element("table", element("thead", head), element("tbody", *rows), class_="numbers")
    return views.section("Runs", element("div", table, class_="wide"))


def _row(shown: Shown, tone: str) -> Markup:
    record = shown.record
    stroke = element("g", element("path", d="M1 6h20"), class_=f"line {tone}")
    swatch = element("svg", stroke, viewBox="0 0 22 12", aria_hidden="true", class_="swatch")
    cells = (
        record.status,
        _steps(record),
        _last(record.metrics.get("loss", [])),
        _last(record.metrics.get(f"{HELDOUT_PREFIX}loss", [])),
        _last(record.metrics.get(f"{HELDOUT_PREFIX}rewards/margins", [])),
        _last(accuracy(record, HELDOUT_PREFIX), percent=True),
        _last(record.metrics.get("memory_gib", [])),
    )
    name = element("th", swatch, element("a", shown.name, href=f"#{shown.id}"), scope="row", dir="auto")
    return element("tr", name, *(element("td", cell) for cell in cells))


def _steps(record: RunRecord) -> str:
    steps: Any = record.summary.get("steps")
    if not isinstance(steps, int):
        steps = max((points[-1][0] for points in record.metrics.values() if points), default=0)
    return f"{steps:,.0f}"


def _last(series: Series, *, percent: bool = False) -> str:
    points = finite(series)
    return in_words(points[-1][1], percent=percent) if points else "\N{EN DASH}"


def _short(name: str) -> str:
    """The name of a run for a legend; of a long one both ends, which tell runs of a sweep apart."""
    return name if len(name) <= LONGEST_NAME else f"{name[:30]} \N{HORIZONTAL ELLIPSIS} {name[-16:]}"


def overlaid(runs: Sequence[Shown]) -> Markup:
    """Return charts in which each run has a line; empty for fewer than two runs."""
    if len(runs) < 2:
        return Markup("")
    drawn = []
    for metric, title, explanation, share in OVERLAID:
        lines = [
            replace(line, labels=(_short(shown.name), f"{_short(shown.name)}, held out"), tone=TONES[at % len(TONES)])
            for at, shown in enumerate(runs)
            if (line := _line(shown.record, metric)).training or line.heldout
        ]
        if lines:
            chart = Chart(f"all-{metric.replace('/', '-')}", title, explanation, tuple(lines), share=share)
            drawn.append(draw(chart))
    return views.section("Curves of all runs", element("div", *drawn, class_="charts")) if drawn else Markup("")


def _line(record: RunRecord, metric: str) -> Line:
    if metric == "accuracy":
        return Line(accuracy(record), accuracy(record, HELDOUT_PREFIX))
    return Line(record.metrics.get(metric, []), record.metrics.get(HELDOUT_PREFIX + metric, []))


def shell() -> Markup:
    """Return the page itself, whose parts the script puts in."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("meta", name_="referrer", content="no-referrer"),
        element("title", "Wishbone board"),
        Markup('<link rel="icon" href="data:,">'),
        Markup('<link rel="stylesheet" href="board.css">'),
        Markup('<script src="board.js" defer></script>'),
    )
    body = element(
        "body",
        element(
            "main",
            element(
                "div",
                element("p", "Wishbone board", class_="kind"),
                element("p", "connecting", id="state", role="status", class_="badge not-finished"),
                class_="top",
            ),
            element("nav", id="tabs", aria_label="Runs"),
            element("div", id="parts"),
            element("noscript", "This page needs its script; `wishbone report RUN` writes a page without one."),
        ),
    )
    return join(Markup("<!doctype html>\n"), element("html", head, body, lang="en"), "\n")
