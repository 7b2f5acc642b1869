"""`wishbone report`: report.html of a run, and its result in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from wishbone.cli.console import plain, say, screen
from wishbone.cli.request import requested
from wishbone.report.diagnosis import diagnose, verdict
from wishbone.report.html import write_report
from wishbone.report.outcome import outcome
from wishbone.report.run_directory import read_run
from wishbone.report.sections import facts


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Directory of a run, finished or not.", show_default=False)
    ],
) -> None:
    """Write report.html into the run directory and print the result of the run."""
    with requested():
        record = read_run(run)
        path = write_report(run)
    console = screen()
    summary = Table.grid(padding=(0, 2))
    summary.add_column(no_wrap=True)
    summary.add_column(overflow="fold")
    for name, text in {"Status": record.status, **facts(record)}.items():
        summary.add_row(plain(name, "bold"), plain(text))
    console.print(summary)
    measured = outcome(record)
    if measured.changes:
        say(measured.caption)
        table = Table()
        table.add_column("Metric")
        for time in (*measured.times, "Change"):
            table.add_column(time, justify="right", no_wrap=True)
        for change in measured.changes:
            table.add_row(change.label, *change.shown())
        console.print(table)
    for finding in diagnose(record):
        style = "bold red" if finding.severity == "problem" else "bold yellow"
        say(f"{finding.title}. {finding.evidence} {finding.remedy}", marker=f"{finding.severity}: ", style=style)
    if judged := verdict(record):
        say(judged)
    for problem in record.problems:
        say(problem, marker="note: ", style="bold yellow")
    say(str(path), marker="report: ", style="bold green")
