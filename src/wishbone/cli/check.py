"""`wishbone check`: what a data set would teach, and what would spoil it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wishbone.atomic_file import write_text
from wishbone.cli.check_request import CheckRequest, is_run_file, named_columns, of_a_run
from wishbone.cli.console import plain, say, screen
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.request import requested
from wishbone.data.formats import PairRule, Pairs
from wishbone.data.formats.recognize import shown_names
from wishbone.data.row_reader import RowRules
from wishbone.errors import RequestError, counted
from wishbone.paths import unwritten, user_path

if TYPE_CHECKING:
    from wishbone.check.examine import Examination
    from wishbone.check.kinds import Finding
    from wishbone.check.model_view import ModelView
    from wishbone.check.pictures import PictureTotals
    from wishbone.check.sample import View

HURTS = 1
SHOWN_TEXT = 600
"""Characters, or tokens, of each side of the example."""
STYLES = {"problem": "bold red", "warning": "bold yellow", "note": "bold"}


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
    """Check preference pairs. Exit status 0: nothing hurts, 1: something does, 2: the data cannot be read."""
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
        typer.echo(json.dumps(_as_json(found, example, fix, cleaned), indent=2))
    else:
        _print(found, example, asked.model)
        if fix is not None and cleaned is not None:
            _print_cleaned(found, fix, *cleaned)
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


def _print(found: Examination, example: View, model: str | None) -> None:
    console = screen()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(found, model):
        facts.add_row(plain(name, "bold"), plain(text))
    console.print(facts)
    console.print()
    console.print(_length_table(found, console))
    if found.cuts:
        console.print()
        console.print(_cut_table(found))
    _print_example(console, example, model)
    console.print()
    for finding in found.findings:
        say(told(finding), marker=f"{finding.kind.severity}: ", style=STYLES[finding.kind.severity])
    if not found.findings:
        say("nothing was found that hurts", marker="clean: ", style="bold green")


def _facts(found: Examination, model: str | None) -> Iterator[tuple[str, str]]:
    for reader in found.readers:
        source = reader.contents
        yield "Data", f"{source.name}: {counted(source.rows, 'row')}, read as '{reader.layout}'"
        if source.judgments:
            yield "Judged", source.judgments
        if source.turned:
            yield "Form", "texts, written as one user turn and one answer (--raw, data.template: none: as they are)"
        elif reader.prerendered:
            yield "Form", "texts that hold the template's tokens already, trained as they are"
        if source.unread:
            yield "Not read", f"columns {shown_names(source.unread)}"
    yield "Pairs", f"{len(found.ledger):,}"
    if found.pictures.pairs:
        yield "Images", _told_images(found.pictures)
    if found.held_out is not None:
        yield "Held out", counted(found.held_out, "pair")
    if model is not None:
        yield "Model", model
    spread = found.spreads
    shorter = 1 - spread.chosen_longer - spread.equally_long
    yield (
        "Longer side",
        f"chosen in {spread.chosen_longer:.0%} of the pairs, rejected in {shorter:.0%}, neither in "
        f"{spread.equally_long:.0%}",
    )


def _told_images(pictures: PictureTotals) -> str:
    told = f"{pictures.images:,} in {counted(pictures.pairs, 'pair')}"
    if pictures.smallest is None or pictures.largest is None:
        return told
    small, large = (f"{width} x {height}" for width, height in (pictures.smallest, pictures.largest))
    return f"{told}, of {small} pixels" + (f" to {large}" if large != small else "")


def _length_table(found: Examination, console: Console) -> Table:
    from wishbone.check.lengths import BARS, PLAIN_BARS, drawn

    glyphs = BARS if _can_print(console, BARS) else PLAIN_BARS
    edges = found.spreads.edges
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(found.unit.capitalize(), no_wrap=True)
    for name in ("median", "95%", "longest"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"{edges[0]:,} to {edges[-1]:,}, logarithmic", no_wrap=True)
    for name, side in found.spreads.sides.items():
        numbers = (f"{number:,}" for number in (side.median, side.p95, side.longest))
        table.add_row(name, *numbers, Text(drawn(side.bars, glyphs), "cyan"))
    return table


def _can_print(console: Console, text: str) -> bool:
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _cut_table(found: Examination) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("max_length", "pairs cut", "tokens cut", "pairs lost"):
        table.add_column(name, justify="right", no_wrap=True)
    for cut in found.cuts:
        table.add_row(f"{cut.limit:,}", f"{cut.pairs:,}", f"{cut.tokens:.2%}", f"{cut.lost:,}")
    return table


def _print_example(console: Console, example: View, model: str | None) -> None:
    """A pair with a margin: `|` beside what is only read, `+` and `-` beside what is trained."""
    console.print()
    how = "as read" if example.tokens is None else "as the model sees it; tokens behind + and - are trained"
    console.print(plain(f"{example.place}, {how}", "bold"), soft_wrap=True)
    margins = {"prompt": ("|", ""), "chosen": ("+", "green"), "rejected": ("-", "red")}
    for name, (margin, style) in margins.items():
        console.print(plain(name, "bold dim"))
        for line in _shown_side(example, name).split("\n"):
            console.print(plain(f"  {margin} {line}".rstrip(" "), style), soft_wrap=True)


def _shown_side(example: View, name: str) -> str:
    if example.tokens is not None:
        return "".join(text for text, _ in example.tokens[name])
    return "\n".join(f"{role}: {text}" if role else text for role, text in example.sides[name])


def told(finding: Finding) -> str:
    """A finding as a paragraph: how many, why it hurts, what to do, and where."""
    kind = finding.kind
    head = f"{finding.told()}. {kind.why} {kind.remedy}"
    return head + "".join(f"\n  {line}" for line in finding.lines())


def _print_cleaned(found: Examination, path: Path, kept: int, dropped: Mapping[str, int]) -> None:
    from wishbone.check.kinds import KINDS, UNREADABLE

    unreadable = sum(reader.contents.misfits for reader in found.readers)
    left_out = {UNREADABLE: unreadable} if unreadable else {}
    told_out = "; ".join(f"{KINDS[name].label} ({count:,})" for name, count in (left_out | dict(dropped)).items())
    stay = "; ".join(f"{one.kind.label} ({one.count:,})" for one in found.findings if not one.kind.dropped)
    say(
        f"{path}: {counted(kept, 'pair')}. Left out: {told_out or 'nothing'}"
        + (f". Still there: {stay}" if stay else ""),
        marker="copy: ",
        style="bold green",
    )


def _as_json(
    found: Examination, example: View, fix: Path | None, cleaned: tuple[int, Mapping[str, int]] | None
) -> dict[str, Any]:
    spread = found.spreads
    return {
        "data": [
            {
                "name": source.name,
                "rows": source.rows,
                "layout": source.layout,
                "judged": source.judgments or None,
                "not_read": source.unread,
            }
            for source in (reader.contents for reader in found.readers)
        ],
        "pairs": len(found.ledger),
        "images": {"pairs": found.pictures.pairs, "readable": found.pictures.images},
        "held_out": found.held_out,
        "unit": found.unit,
        "lengths": {
            name: {
                "mean": side.mean,
                "median": side.median,
                "p95": side.p95,
                "longest": side.longest,
                "histogram": list(side.bars),
            }
            for name, side in spread.sides.items()
        },
        "histogram_edges": list(spread.edges),
        "chosen_longer": spread.chosen_longer,
        "equally_long": spread.equally_long,
        "max_length": [
            {"limit": cut.limit, "pairs_cut": cut.pairs, "tokens_cut": cut.tokens, "pairs_lost": cut.lost}
            for cut in found.cuts
        ],
        "findings": [
            {
                "name": finding.name,
                "severity": finding.kind.severity,
                "title": finding.kind.title,
                "count": finding.count,
                "of": finding.of,
                "rows": list(finding.rows),
                "details": list(finding.details),
                "why": finding.kind.why,
                "remedy": finding.kind.remedy,
            }
            for finding in found.findings
        ],
        "example": {
            "place": example.place,
            "read": example.sides,
            "tokens": example.tokens
            and {name: [text for text, _ in tokens] for name, tokens in example.tokens.items()},
        },
        "copy": None if cleaned is None else {"path": str(fix), "pairs": cleaned[0], "left_out": dict(cleaned[1])},
    }
