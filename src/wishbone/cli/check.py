"""`wishbone check`: what a data set would teach, and what would spoil it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wishbone.atomic_file import write_text
from wishbone.cli.check_request import CheckRequest, is_run_file, named_columns, of_a_run
from wishbone.cli.console import say, screen
from wishbone.cli.examination import examination_data, print_cleaned, print_examination
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.request import requested
from wishbone.data.formats import PairRule, Pairs
from wishbone.data.row_reader import RowRules
from wishbone.errors import RequestError
from wishbone.paths import unwritten, user_path

if TYPE_CHECKING:
    from wishbone.check.examine import Examination
    from wishbone.check.model_view import ModelView
    from wishbone.check.sample import View

HURTS = 1
SHOWN_TEXT = 600
"""Characters, or tokens, of each side of the example."""


def check(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Files, directories or hub names; or a run's CONFIG.yaml, and SECTION.KEY=VALUE as for train.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Show pairs as this model sees them, and count its tokens.", show_default=False)
    ] = None,
    held_out: Annotated[
        str | None, typer.Option("--held-out", metavar="DATA", help="Look for its prompts in DATA.", show_default=False)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of directories and hub data sets; without it: train.", show_default=False)
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME=YOURS",
            help="As data.columns; NAME= is not read. May be repeated.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Pairs | None,
        typer.Option(help="As data.pairs, for scored and ranked rows; without it: best_worst.", show_default=False),
    ] = None,
    least_margin: Annotated[
        float | None, typer.Option("--least-margin", min=0, help="As data.least_margin.", show_default=False)
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Texts are trained without the chat template (data.template: none).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="OUT.jsonl", help="Write a copy without the pairs that are spoiled.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page to leaf through.", show_default=False)
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> None:
    """Check preference pairs. Exit status 0: no problems, 1: problems or warnings, 2: the data cannot be read."""
    settle_libraries()
    with requested():
        from wishbone.check.cleaned import refuse_existing, write_cleaned
        from wishbone.check.examine import examine

        if fix is not None:
            fix = user_path(fix)
            refuse_existing(fix)
        if html is not None:
            html = user_path(html)
            _refuse_no_page(html)
        if is_run_file(data[0]):
            given = {
                "--model": model,
                "--held-out": held_out,
                "--split": split,
                "--column": column,
                "--pairs": pairs,
                "--least-margin": least_margin,
                "--raw": raw or None,
            }
            if said := [name for name, value in given.items() if value is not None]:
                raise RequestError(
                    f"{', '.join(said)} beside {data[0]}: the file of a run says that; write SECTION.KEY=VALUE behind "
                    "it, such as data.pairs=all, or name its data"
                )
            asked = of_a_run(data[0], data[1:])
            asked = replace(asked, trust_remote_code=asked.trust_remote_code or trust_remote_code)
        else:
            asked = CheckRequest(
                data=[(name, split or "train") for name in data],
                held_out=None if held_out is None else (held_out, split or "train"),
                rules=RowRules(
                    columns=dict(named_columns(column or [])),
                    rule=PairRule(pairs or "best_worst", least_margin or 0.0),
                ),
                template="none" if raw else "auto",
                model=model,
                trust_remote_code=trust_remote_code,
            )
        readers, measured, view = asked.readers(), asked.held_out_reader(), asked.view()
        with screen(error=True).status("reading pairs"):
            found = examine(
                readers, held_out=measured, model=view, template=asked.template, max_length=asked.max_length
            )
            example = _example(found, view)
            cleaned = None if fix is None else write_cleaned(found, fix)
            if html is not None:
                _write_page(found, html, [name for name, _ in asked.data], asked.model, view)
    if as_json:
        typer.echo(json.dumps(examination_data(found, example, fix, cleaned), indent=2))
    else:
        print_examination(found, example, asked.model)
        if fix is not None and cleaned is not None:
            print_cleaned(found, fix, *cleaned)
        if html is not None:
            say(str(html), marker="page: ", style="bold green")
    raise typer.Exit(HURTS if found.hurts else 0)


def _example(found: Examination, view: ModelView | None) -> View:
    from wishbone.check.sample import views

    return views(found, [found.example], view, SHOWN_TEXT)[0]


def _refuse_no_page(path: Path) -> None:
    """Refuse a place where no page can be, before the data are read."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"{path}: the page is HTML; let its name end with .html")
    if not path.parent.is_dir():
        raise RequestError(f"--html: {str(path.parent)!r} is not a directory; make it, or name another place")
    if path.is_dir():
        raise RequestError(f"--html: {str(path)!r} is a directory; name a file")


def _write_page(found: Examination, path: Path, data: Sequence[str], model: str | None, view: ModelView | None) -> None:
    from wishbone.check.page import page
    from wishbone.check.sample import chosen_pairs, longest_shown, views

    indices = chosen_pairs(found.ledger)
    shown = views(found, indices, view, longest_shown(len(indices)))
    text = page(found, shown, ", ".join(Path(name).name for name in data), model)
    try:
        write_text(path, text)
    except OSError as error:
        raise RequestError(f"--html: {unwritten(path, error)}") from None
