"""Writes results into docs/benchmarks.md: the tables between its marks, and the pictures beside it.

    python -m benchmarks document [RESULTS.json ...] [--check]

Without files, those named `suite-*.json` in benchmarks/results count. With `--check` nothing is written, and the exit
status is 1 if the page or a picture is not what it would be.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.children import ROOT
from benchmarks.curves import curves
from benchmarks.results import FOLDER, Results
from benchmarks.scatter import scatter
from benchmarks.tables import TABLES, failure
from benchmarks.targets import targets_table

PAGE = ROOT / "docs" / "benchmarks.md"
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MISSING = "Not measured yet.\n"


def calls_part(results: Results) -> str:
    """Where, when, and how."""
    lines = []
    for call in results.calls:
        gpus = ", ".join(f"{gpu['name']} ({gpu['memory']}, driver {gpu['driver']})" for gpu in call["hardware"]["gpus"])
        lines.append(
            f"- {call['date']}, {gpus or 'no GPU'}, {call['hardware']['cpu']} ({call['hardware']['cores']} cores), "
            f"Python {call['python']}, commit `{call['commit']}`: `{call['command']}`\n"
        )
    seen: dict[str, set[str]] = {}
    for row in results.rows:
        for name, version in row.get("versions", {}).items():
            seen.setdefault(name, set()).add(version)
    versions = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(seen.items()))
    return "".join(lines) + (f"\nVersions: {versions}.\n" if versions else "")


def failures_part(results: Results) -> str:
    """What did not run, and why."""
    lines = [
        f"- `{row['system']}`, {row['kind']} {row['size'] or ''} {row['case']}: `{_code(failure(row))}`\n"
        for row in results.rows
        if row["status"] != "ok"
    ]
    return "".join(lines) or "Everything ran.\n"


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def speed_picture(results: Results) -> str | None:
    """Pairs a second against memory."""
    rows = [row for row in results.of("throughput") if row["size"] == "8b" and row["case"] == "ultrafeedback:8"]
    return scatter(rows, "8B model, ultrafeedback lengths, 8 pairs a step")


def loss_picture(results: Results) -> str | None:
    """Losses over steps."""
    return curves([row for row in results.of("quality") if row["size"] is None], "Training loss, mean over seeds")


PICTURES: dict[str, tuple[Callable[[Results], str | None], str]] = {
    "benchmarks-speed.svg": (speed_picture, "Pairs a second against peak memory"),
    "benchmarks-loss.svg": (loss_picture, "Training losses of the systems, mean over seeds"),
}


def linked(name: str) -> Callable[[Results], str]:
    """Return what makes the link to a picture."""
    draw, described = PICTURES[name]
    return lambda results: f"![{described}]({name})\n" if draw(results) else MISSING


PARTS: dict[str, Callable[[Results], str]] = {
    "calls": calls_part,
    "failures": failures_part,
    "speed": linked("benchmarks-speed.svg"),
    "losses": linked("benchmarks-loss.svg"),
    "targets": lambda results: targets_table(results).markdown(),
}


def part(name: str, results: Results) -> str:
    """Return the text of a part of the page."""
    if not results.rows:
        return MISSING
    if name in PARTS:
        return PARTS[name](results)
    return TABLES[name](results).markdown() if results.of(name) else MISSING


def render(text: str, results: Results) -> str:
    """Return a page with its generated parts made anew.

    Raises:
        ValueError: a mark names no part.
    """
    unknown = {name for _, name, _ in PART.findall(text)} - PARTS.keys() - TABLES.keys()
    if unknown:
        raise ValueError(f"there are no parts named {', '.join(sorted(unknown))}")
    return PART.sub(lambda found: found[1] + part(found[2], results) + found[3], text)


def default_results() -> list[Path]:
    """Return the files that the page is made of."""
    return sorted(FOLDER.glob("suite-*.json"))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks document", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="*", help="files of results")
    parser.add_argument("--check", action="store_true", help="write nothing, tell whether something would change")
    options = parser.parse_args()
    results = Results.read(*(options.results or default_results()))
    wanted = {PAGE: render(PAGE.read_text(encoding="utf-8"), results)}
    wanted |= {PAGE.with_name(name): f"{svg}\n" for name, (draw, _) in PICTURES.items() if (svg := draw(results))}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is stale' if options.check else 'written'}")
        if not options.check:
            path.write_text(wanted[path], encoding="utf-8")
    raise SystemExit(1 if stale and options.check else 0)
