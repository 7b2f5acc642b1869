"""The generated parts of docs/benchmarks.md: tables and pictures between its marks."""

from __future__ import annotations

import re
from collections.abc import Callable

from benchmarks.harness.results import FOLDER, ROOT, Results, Row, failure
from benchmarks.rendering.curves import curves
from benchmarks.rendering.published import factors_table, published_table
from benchmarks.rendering.real_pairs_tables import with_all_seeds
from benchmarks.rendering.scatter import scatter
from benchmarks.rendering.tables import TABLES
from benchmarks.rendering.targets import elsewhere_table, targets_table

PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = tuple(FOLDER / name for name in ("suite-h200.json", "adapter-rounding-h200.json"))
"""The files that the page shows."""
ELSEWHERE = FOLDER / "another-h200.json"
"""The same rows, measured on another machine, with its peers there."""
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MISSING = "Not measured yet.\n"


def calls_part(results: Results) -> str:
    """Return where and when the rows were measured, one line for each machine, and with which versions."""
    used = {row["call"] for row in results.rows}
    machines: dict[str, list[str]] = {}
    for index, call in enumerate(results.calls):
        if index in used:
            machines.setdefault(_machine(call), []).append(_call(call))
    lines = [
        f"{machine}:\n\n{''.join(f'- {call}' for call in dict.fromkeys(calls))}" for machine, calls in machines.items()
    ]
    seen: dict[str, set[str]] = {}
    for row in results.rows:
        for name, version in row.get("versions", {}).items():
            seen.setdefault(name, set()).add(version)
    versions = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(seen.items()))
    return "\n".join(lines) + (f"\nVersions: {versions}.\n" if versions else "")


def _machine(call: Row) -> str:
    hardware = call["hardware"]
    gpus = ", ".join(f"{gpu['name']} (driver {gpu['driver']})" for gpu in hardware["gpus"])
    return f"{gpus or 'No GPU'}, {hardware['cpu']} ({hardware['cores']} cores), Python {call['python']}"


def _call(call: Row) -> str:
    """Return the day, which benchmark ran, and the commit."""
    benchmark = re.sub(r"^python -m benchmarks[. ]", "", call["command"]).partition(" ")[0].replace("_", "-")
    commit, _, changed = (call["commit"] or "unknown").partition(" ")
    return f"{call['date'][:10]} `{benchmark}` at `{commit[:7]}`" + (f" {changed}" if changed else "") + "\n"


def failures_part(results: Results) -> str:
    """Return which rows have no result, and why."""
    lines = [
        f"- `{row['system']}`, {row['kind']} {row['size'] or ''} {row['case']}: `{_code(failure(row))}`\n"
        for row in results.rows
        if row["status"] != "ok"
    ]
    return "".join(lines) or "Everything ran.\n"


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def speed_picture(results: Results) -> str | None:
    """Draw pairs a second against memory."""
    rows = [row for row in results.of("throughput") if row["size"] == "8b" and row["case"] == "ultrafeedback:8"]
    return scatter(rows, "8B model, ultrafeedback lengths, 8 pairs a step")


def loss_picture(results: Results) -> str | None:
    """Draw losses over steps."""
    return curves(
        [row for row in with_all_seeds(results.of("quality")) if row["size"] is None], "Training loss, mean over seeds"
    )


PICTURES: dict[str, tuple[Callable[[Results], str | None], str]] = {
    "benchmarks-speed.svg": (speed_picture, "Pairs a second against peak memory"),
    "benchmarks-loss.svg": (loss_picture, "Training losses of the systems, mean over seeds"),
}


def linked(name: str) -> Callable[[Results], str]:
    """Return the function that writes the link to a picture."""
    draw, described = PICTURES[name]
    return lambda results: f"![{described}]({name})\n" if draw(results) else MISSING


PARTS: dict[str, Callable[[Results], str]] = {
    "calls": calls_part,
    "failures": failures_part,
    "speed": linked("benchmarks-speed.svg"),
    "losses": linked("benchmarks-loss.svg"),
    "targets": lambda results: targets_table(results).markdown(),
    "published": lambda results: published_table(results).markdown(),
    "factors": lambda results: factors_table(results).markdown(),
    "elsewhere": lambda results: elsewhere_table(results, Results.read(ELSEWHERE)).markdown(),
}


def part(name: str, results: Results) -> str:
    """Return the text of a part of the page."""
    if not results.rows:
        return MISSING
    if name in PARTS:
        return PARTS[name](results)
    return TABLES[name](results).markdown() if results.of(name) else MISSING


def render(text: str, results: Results) -> str:
    """Return a page with its generated parts written again.

    Raises:
        ValueError: a mark names a part that does not exist.
    """
    unknown = {name for _, name, _ in PART.findall(text)} - PARTS.keys() - TABLES.keys()
    if unknown:
        raise ValueError(f"there are no parts named {', '.join(sorted(unknown))}")
    return PART.sub(lambda found: found[1] + part(found[2], results) + found[3], text)
