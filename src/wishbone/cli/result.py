"""The result of a run on the terminal, and as data: what changed, what stands out."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from wishbone.cli.console import say, screen
from wishbone.report.diagnosis import diagnose, verdict
from wishbone.report.outcome import outcome
from wishbone.report.run_directory import RunRecord


def print_changes(record: RunRecord, *, error: bool = False) -> None:
    """Print the table of metrics before and after, and what stands out; `error`: on standard error."""
    measured = outcome(record)
    if measured.changes:
        say(measured.caption, error=error)
        table = Table()
        table.add_column("Metric")
        for time in (*measured.times, "Change"):
            table.add_column(time, justify="right", no_wrap=True)
        for change in measured.changes:
            table.add_row(change.label, *change.shown())
        screen(error=error).print(table)
    for finding in diagnose(record):
        style = "bold red" if finding.severity == "problem" else "bold yellow"
        say(
            f"{finding.title}. {finding.evidence} {finding.remedy}",
            marker=f"{finding.severity}: ",
            style=style,
            error=error,
        )
    if judged := verdict(record):
        say(judged, error=error)
    for problem in record.problems:
        say(problem, marker="note: ", style="bold yellow", error=error)


def result_data(record: RunRecord) -> dict[str, Any]:
    """Return the result of a run as data for other programs; what is not finite is null."""
    measured = outcome(record)
    return {
        "run": str(record.path),
        "status": record.status,
        "summary": record.summary,
        "measured": {
            "on": measured.caption,
            "times": list(measured.times),
            "metrics": {
                change.metric: {"before": _number(change.before), "after": _number(change.after)}
                for change in measured.changes
            },
        },
        "findings": [
            {"severity": found.severity, "title": found.title, "evidence": found.evidence, "remedy": found.remedy}
            for found in diagnose(record)
        ],
        "verdict": verdict(record),
        "answers": record.answers,
        "problems": list(record.problems),
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
