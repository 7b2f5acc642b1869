"""How a command ends when the request was wrong: the list of problems on standard error, exit status 2."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from wishbone.cli.console import refuse
from wishbone.errors import RequestError

TRACEBACK_VARIABLE = "WISHBONE_TRACEBACK"


@contextmanager
def requested() -> Iterator[None]:
    """Print the problems of a `RequestError` and exit with status 2; `WISHBONE_TRACEBACK` also shows the traceback."""
    try:
        yield
    except RequestError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        refuse(error.problems)
        raise typer.Exit(2) from error
