"""`wishbone eval`: accuracy and margins of runs on pairs of any data set, with confidence intervals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from wishbone.cli.console import plain, say, screen
from wishbone.cli.finished import TrustRemoteCode, opened_run
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.request import requested
from wishbone.config.document import show
from wishbone.errors import RequestError, counted
from wishbone.phases import phase
from wishbone.report.run_directory import CONFIG
from wishbone.run.phase_display import phases_shown
from wishbone.strict_json import without_nan

if TYPE_CHECKING:
    from wishbone.result.evaluation import Evaluation, Interval

METHODS = "95 % intervals: Wilson for accuracy, bootstrap over pairs for the others"


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of runs.", show_default=False)],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Pairs: a file, a directory or a hub name.", show_default=False)
    ],
    split: Annotated[str, typer.Option(help="Of directories and hub data sets.")] = "train",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure the first so many pairs only.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure runs on pairs: how often the better completion has the higher reward, and by how much."""
    settle_libraries()
    with requested():
        if (Path(data) / CONFIG).is_file() and not any((run / CONFIG).is_file() for run in runs):
            raise RequestError(f"{show(data)} is a run, and the pairs come last: wishbone eval RUN... DATA")
        finished = [opened_run(run, trust_remote_code=trust_remote_code) for run in runs]
        with screen(error=True).status("loading torch"):
            from wishbone.result.evaluation import evaluate as measured

        found: list[Evaluation] = []
        for run in finished:
            with phases_shown(screen(error=True)), phase("run", note=plain(str(run.path)).plain):
                found.append(measured(run, data, split=split, limit=limit))
    if as_json:
        shown = [{"run": str(path), "data": data, **asdict(one)} for path, one in zip(runs, found, strict=True)]
        typer.echo(json.dumps(without_nan(shown), indent=2, allow_nan=False))
        return
    table = Table()
    table.add_column("Run", overflow="fold")
    for name in ("Pairs", "Accuracy", "Margin", "Chosen reward", "Rejected reward"):
        table.add_column(name, justify="right")
    for path, one in zip(runs, found, strict=True):
        shares = f"{one.accuracy.value:.1%} ({one.accuracy.low:.1%} to {one.accuracy.high:.1%})"
        numbers = (_told(value) for value in (one.margin, one.chosen, one.rejected))
        table.add_row(plain(str(path)), f"{one.pairs:,}", shares, *numbers)
    screen().print(table)
    say(METHODS)
    for path, one in zip(runs, found, strict=True):
        if one.dropped:
            say(f"{path}: {counted(one.dropped, 'row')} left out that are no usable pairs", marker="note: ")
        if one.ties:
            say(f"{path}: {counted(one.ties, 'pair')} with equal rewards, counted as wrong", marker="note: ")


def _told(found: Interval) -> str:
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"
