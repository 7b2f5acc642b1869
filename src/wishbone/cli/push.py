"""`wishbone push`: publishes what a run learned on the hub, with a model card."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from wishbone.cli.console import binary_size, plain, say, screen
from wishbone.cli.finished import RunDirectory, TrustRemoteCode, opened_run
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.request import requested


def push(
    run: RunDirectory,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub.", show_default=False)],
    merged: Annotated[bool, typer.Option("--merged", help="The whole model, with the adapter merged.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    base: Annotated[
        str | None,
        typer.Option(metavar="OWNER/MODEL", help="Of the base model, if the run trained a copy.", show_default=False),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="NAME", help="Of the result, such as apache-2.0.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print card and files, publish nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print address, files and card as JSON.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Publish what a run learned on the hub, with a model card that is written from the run."""
    settle_libraries()
    with requested():
        finished = opened_run(run, trust_remote_code=trust_remote_code)
        with screen(error=True).status("loading torch"):
            from wishbone.model.publishing import Upload
            from wishbone.result.publish import publication

        waiting = screen(error=True).status("writing the model and its card")
        with waiting, publication(finished, repository, merged=merged, base=base, licence=licence) as directory:
            card = (directory / "README.md").read_text(encoding="utf-8")
            files = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
            address = None if dry_run else Upload(repository, private=private or None).send(directory)
    if as_json:
        shown = {"repository": repository, "published": address, "files": files, "card": card}
        typer.echo(json.dumps(shown, indent=2))
    elif address is not None:
        say(address, marker="published: ", style="bold green")
    else:
        screen().print(plain(card), soft_wrap=True)
        for name, size in files.items():
            say(f"{name} ({binary_size(size)})", marker="file: ", style="bold")
