"""On how many layers each part of the model ran through Wishbone's own kernels, and why not on the others.

`summary.json` has it under `fused_parts`: a list of {part, layers, fused, why_not}, in which `why_not` is a list of
{reason, layers}. Like everything in a run directory it may hold anything.
"""

from __future__ import annotations

from typing import Any

from wishbone.report.markup import Markup, element
from wishbone.report.run_directory import RunRecord

LONGEST_TEXT = 400
DASH = "\N{EN DASH}"


def fused_table(record: RunRecord) -> Markup | None:
    """Return the section with the table; None for a run that has none, as on TRL's own path."""
    parts = _entries(record.summary.get("fused_parts"))
    if not parts:
        return None
    caption = "Layers that ran fused. The others ran the model's own code; the last column says why."
    head = element("tr", *(element("th", name, scope="col") for name in ("Part", "Layers", "Why not on all")))
    rows = [
        element(
            "tr",
            element("th", _text(part.get("part")), scope="row"),
            element("td", f"{_text(part.get('fused'))} of {_text(part.get('layers'))}"),
            element("td", _reasons(part.get("why_not"))),
        )
        for part in parts
    ]
    table = element(
        "table", element("caption", caption), element("thead", head), element("tbody", *rows), class_="parts"
    )
    return element("section", element("h2", "Fused parts"), element("div", table, class_="wide"))


def _reasons(value: Any) -> str:
    reasons = [f"{_text(one.get('reason'))} ({_text(one.get('layers'))})" for one in _entries(value)]
    return "; ".join(reasons) or DASH


def _entries(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return DASH if value is None else str(value)[:LONGEST_TEXT]
