"""What `wishbone check` found, on the terminal and as data: facts, lengths, one pair as an example, findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wishbone.cli.console import plain, say, screen
from wishbone.data.formats.recognize import shown_names
from wishbone.errors import counted

if TYPE_CHECKING:
    from wishbone.check.examine import Examination
    from wishbone.check.kinds import Finding
    from wishbone.check.pictures import PictureTotals
    from wishbone.check.sample import View

STYLES = {"problem": "bold red", "warning": "bold yellow", "note": "bold"}


def print_examination(found: Examination, example: View, model: str | None) -> None:
    """Print the facts of the data, the lengths, what a limit would cut, a pair as an example, and every finding."""
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
        say(_told(finding), marker=f"{finding.kind.severity}: ", style=STYLES[finding.kind.severity])
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


def _told(finding: Finding) -> str:
    """A finding as a paragraph: how many, why it hurts, what to do, and where."""
    kind = finding.kind
    head = f"{finding.told()}. {kind.why} {kind.remedy}"
    return head + "".join(f"\n  {line}" for line in finding.lines())


def print_cleaned(found: Examination, path: Path, kept: int, dropped: Mapping[str, int]) -> None:
    """Print where a clean copy lies, how many pairs it has, and what was left out of it and what was not."""
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


def examination_data(
    found: Examination, example: View, fix: Path | None, cleaned: tuple[int, Mapping[str, int]] | None
) -> dict[str, Any]:
    """What was found as plain values; `cleaned`: the pairs in the clean copy `fix`, and those left out by fault."""
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
