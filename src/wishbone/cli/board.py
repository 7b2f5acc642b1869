"""`wishbone board`: a local page of runs while they train."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from wishbone.cli.console import plain, say, screen
from wishbone.cli.request import requested


def board(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...", help="Run directories, or directories that hold some; runs/ if none.", show_default=False
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on; the first free one from 8735 on.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show runs on a local page while they train: curves, answers, pairs, memory, the guard. Ctrl-C ends it."""
    from wishbone.board.runs import Runs
    from wishbone.board.server import BoardServer, lasting_token
    from wishbone.cache import cache_root
    from wishbone.config.document import show_path
    from wishbone.errors import RequestError
    from wishbone.paths import user_path

    with requested():
        places = [user_path(run) for run in runs or [Path("runs")]]
        problems = [
            f"{show_path(place)} is not a directory; name a run directory, or one that holds runs"
            for place in places
            if not place.is_dir() and (runs or place.exists())
        ]
        if problems:
            raise RequestError(problems)
        server = BoardServer(Runs(places), lasting_token(cache_root() / "board-token"), port)
    if not places[0].exists():
        say(
            "runs/ is not there yet; a run shows as soon as it begins", marker="note: ", style="bold yellow", error=True
        )
    try:
        said = "the page is read only, and this machine's alone; Ctrl-C ends it"
        say(said, marker="board: ", style="bold", error=True)
        screen().print(plain(server.url), soft_wrap=True)
        sys.stdout.flush()
        if open_browser:
            webbrowser.open(server.url)
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("ended; the address stays the same the next time", marker="board: ", style="bold", error=True)
    finally:
        server.server_close()
