"""Opening a finished run for a command that uses its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wishbone.cli.console import say

if TYPE_CHECKING:
    from wishbone.result.finished_run import FinishedRun

RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.", show_default=False)]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with a run's model.")
]


def opened_run(path: Path, *, trust_remote_code: bool) -> FinishedRun:
    """A finished run, with a note where it wants to run code that this call does not let it run.

    Raises:
        RequestError: as `finished_run`.
    """
    from wishbone.result.finished_run import finished_run

    run = finished_run(path, trust_remote_code=trust_remote_code)
    if run.distrusted:
        say(
            "the run says trust_remote_code; code that comes with its model runs only with --trust-remote-code here",
            marker="note: ",
            style="bold yellow",
            error=True,
        )
    return run
