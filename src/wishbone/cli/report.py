"""`wishbone report`: report.html of a run, its result in a few lines, and answers before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from wishbone.cli.answers import print_recorded
from wishbone.cli.console import plain, say, screen
from wishbone.cli.request import requested
from wishbone.cli.result import print_changes, result_data
from wishbone.errors import counted
from wishbone.report.html import REPORT, write_report
from wishbone.report.run_directory import RunRecord, read_run
from wishbone.report.sections import facts
from wishbone.strict_json import without_nan

SHOWN_ANSWERS = 3


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Directory of a run, finished or not.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Write report.html into the run directory and print the result of the run, with its answers before and after."""
    with requested():
        record = read_run(run)
    if as_json:
        shown = {**result_data(record), "facts": facts(record), "report": str(record.path / REPORT)}
        typer.echo(json.dumps(without_nan(shown), indent=2))
    else:
        _print(record)
    with requested():  # after the result: a run that cannot be written to can be read
        path = write_report(run)
    if not as_json:
        say(str(path), marker="report: ", style="bold green")


def _print(record: RunRecord) -> None:
    summary = Table.grid(padding=(0, 2))
    summary.add_column(no_wrap=True)
    summary.add_column(overflow="fold")
    for name, text in {"Status": record.status, **facts(record)}.items():
        summary.add_row(plain(name, "bold"), plain(text))
    screen().print(summary)
    print_changes(record)
    for number, answer in enumerate(record.answers[:SHOWN_ANSWERS], 1):
        print_recorded(number, answer)
    if len(record.answers) > SHOWN_ANSWERS:
        say(f"{counted(len(record.answers) - SHOWN_ANSWERS, 'more answer')} in the report")
