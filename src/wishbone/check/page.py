"""What was found, and a sample of the pairs, as one HTML page that needs no network and no other file.

The page has one script, which leafs through the pairs. A content security policy names its hash and forbids all else,
so even an error in escaping could not run anything. The pairs are JSON in which `<`, `>` and `&` are escaped; the
script writes them as text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from wishbone.check.examine import Examination
from wishbone.check.kinds import KINDS, Finding
from wishbone.check.lengths import Spread
from wishbone.check.sample import Token, View
from wishbone.report.html import STYLE, document
from wishbone.report.markup import Markup, element, join
from wishbone.version import __version__

_OWN_STYLE = Path(__file__).with_name("page.css")
_SCRIPT = Path(__file__).with_name("page.js")
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def page(found: Examination, shown: Sequence[View], title: str, model: str | None) -> str:
    """Return the page.

    Args:
        found: what was examined.
        shown: the pairs that it holds.
        title: the name of the data.
        model: the name of the model whose tokens are shown.
    """
    script = _SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    style = STYLE.read_text(encoding="utf-8") + _OWN_STYLE.read_text(encoding="utf-8")
    main = element(
        "main",
        _heading(found, title, model),
        _findings(found),
        _lengths(found),
        _leaf(found, shown),
        element("footer", f"Written by Wishbone {__version__}."),
    )
    body = element("body", main, _embedded(found, shown), element("script", Markup(script)))
    return document(title, style, policy, body)


def _heading(found: Examination, title: str, model: str | None) -> Markup:
    facts = {
        "Pairs": f"{len(found.ledger):,}",
        "Layout": "; ".join(dict.fromkeys(reader.layout for reader in found.readers)),
        "Columns not read": ", ".join(
            dict.fromkeys(name for reader in found.readers for name in reader.contents.unread)
        ),
        "Held-out pairs": "" if found.held_out is None else f"{found.held_out:,}",
        "Model": model or "",
    }
    rows = [
        element("div", element("dt", name), element("dd", text, dir="auto")) for name, text in facts.items() if text
    ]
    return element(
        "header",
        element("p", "Preference pairs", class_="kind"),
        element("h1", title),
        element("dl", *rows, class_="facts"),
    )


def _findings(found: Examination) -> Markup:
    if not found.findings:
        return element("section", element("p", "Nothing was found that hurts.", class_="fine"))
    return element(
        "section",
        element("h2", "What was found"),
        element("ul", *map(_finding, found.findings), class_="findings"),
    )


def _finding(finding: Finding) -> Markup:
    kind = finding.kind
    button = element("button", "Look at them", type="button", data_fault=finding.name)
    return element(
        "li",
        element("strong", f"{kind.severity.capitalize()}: {finding.told()}. "),
        f"{kind.why} ",
        element("span", kind.remedy, class_="remedy"),
        *(element("p", line, class_="rows") for line in finding.lines()),
        button if finding.name in _LEAFED else None,
        class_=kind.severity,
    )


_LEAFED = KINDS.keys() - {"unreadable", "length"}
"""Findings whose pairs can be looked at: rows that are no pair, and the share of longer answers, are not such."""


def _lengths(found: Examination) -> Markup:
    head = element("tr", *(element("th", name, scope="col") for name in ("Side", "Median", "95%", "Longest", "Spread")))
    rows = [_length_row(name, side) for name, side in found.spreads.sides.items()]
    edges = found.spreads.edges
    caption = (
        f"{found.unit.capitalize()} of each side, on a logarithmic scale from {edges[0]:,} to {edges[-1]:,}. The "
        f"chosen completion is the longer one in {found.spreads.chosen_longer:.0%} of the pairs."
    )
    table = element(
        "table", element("caption", caption), element("thead", head), element("tbody", *rows), class_="numbers"
    )
    return element(
        "section", element("h2", "Lengths"), element("div", table, class_="wide"), _cuts(found) if found.cuts else None
    )


def _length_row(name: str, side: Spread) -> Markup:
    numbers = [element("td", f"{number:,}") for number in (side.median, side.p95, side.longest)]
    return element("tr", element("th", name, scope="row"), *numbers, element("td", _bars(name, side), class_="bars"))


def _bars(name: str, side: Spread) -> Markup:
    highest, width = max(*side.bars, 1), 190 / max(len(side.bars), 1)
    bars = [
        element("rect", x=place * width, y=36 - height, width=max(width - 1, 1), height=height)
        for place, count in enumerate(side.bars)
        if count and (height := max(36 * count / highest, 1.5))
    ]
    label = f"{name}: half of the pairs have at most {side.median:,}, the longest {side.longest:,}"
    return element("svg", *bars, viewBox="0 0 190 36", role="img", aria_label=label)


def _cuts(found: Examination) -> Markup:
    head = element(
        "tr", *(element("th", name, scope="col") for name in ("max_length", "Pairs cut", "Tokens cut", "Pairs lost"))
    )
    rows = [
        element(
            "tr",
            element("th", f"{cut.limit:,}", scope="row"),
            *(element("td", text) for text in (f"{cut.pairs:,}", f"{cut.tokens:.2%}", f"{cut.lost:,}")),
        )
        for cut in found.cuts
    ]
    caption = element("caption", "What each data.max_length would cut. A lost pair keeps nothing of its completions.")
    table = element("table", caption, element("thead", head), element("tbody", *rows), class_="numbers")
    return element("div", table, class_="wide")


def _leaf(found: Examination, shown: Sequence[View]) -> Markup:
    total = len(found.ledger)
    sampled = (
        f"This page holds {len(shown):,} of the {total:,} pairs: the first ones of each finding, and others at equal "
        "distances. Long texts are cut."
        if len(shown) < total
        else "This page holds all pairs. Long texts are cut."
    )
    held = {name for view in shown for name in view.faults}
    options = [
        element("option", "all pairs", value=""),
        *(element("option", kind.label, value=name) for name, kind in KINDS.items() if name in held),
        element("option", "pairs without a finding", value="none"),
    ]
    look = None
    if any(view.tokens for view in shown):
        look = element(
            "fieldset",
            element("legend", "How pairs are shown"),
            *(
                element(
                    "label",
                    element("input", type="radio", name_="look", id=name, checked="" if name == "seen" else None),
                    text,
                    class_="look",
                )
                for name, text in (("seen", "as the model sees them"), ("read", "as read"))
            ),
        )
    controls = element(
        "div",
        element(
            "p",
            element("label", "Search", for_="search"),
            element("input", type="search", id="search", autocomplete="off"),
            class_="field",
        ),
        element("p", element("label", "Show", for_="filter"), element("select", *options, id="filter"), class_="field"),
        look,
        element(
            "div",
            element("button", "Previous", type="button", id="previous"),
            element("p", "", id="count", aria_live="polite"),
            element("button", "Next", type="button", id="next"),
            class_="turning",
        ),
        class_="controls",
    )
    return join(
        element("h2", "Pairs"),
        element("p", sampled),
        element("noscript", element("p", "Leafing through the pairs needs JavaScript.", class_="empty")),
        element("section", controls, element("article", id="pair"), class_="leaf", id="leaf", hidden=""),
    )


def _embedded(found: Examination, shown: Sequence[View]) -> Markup:
    content = {
        "unit": found.unit,
        "sides": ["prompt", "chosen", "rejected"],
        "kinds": {name: {"severity": kind.severity, "label": kind.label} for name, kind in KINDS.items()},
        "pairs": [_entry(view) for view in shown],
    }
    text = json.dumps(content)  # ASCII, so that half of a surrogate pair can be written
    for letter, escape in _ESCAPED.items():
        text = text.replace(letter, escape)
    return element("script", Markup(text), type="application/json", id="pairs")


def _entry(view: View) -> dict[str, Any]:
    """A pair for the script; a special token is a list of one text."""
    tokens = None if view.tokens is None else {name: _listed(side) for name, side in view.tokens.items()}
    return {
        "place": view.place,
        "faults": view.faults,
        "lengths": view.lengths,
        "read": view.sides,
        "tokens": tokens,
    }


def _listed(tokens: Sequence[Token]) -> list[str | list[str]]:
    return [[text] if special else text for text, special in tokens]
