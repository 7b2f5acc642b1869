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
    """Turn a `RequestError` into its problems and exit status 2; the variable shows the traceback as well."""
    try:
        yield
    except RequestError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        refuse(error.problems)
        raise typer.Exit(2) from error
