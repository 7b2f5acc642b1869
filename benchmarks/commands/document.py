"""Writes results into docs/benchmarks.md: the tables between its marks, and the pictures beside it.

    python -m benchmarks document [RESULTS.json ...] [--check]

Without files it takes those that `rendering/page.py` lists. With `--check` it writes nothing, and exit status 1 says
that the page or a picture is stale.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.harness.results import ROOT, Results
from benchmarks.rendering.page import PAGE, PICTURES, RESULTS, render


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks document", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="*", help="files of results")
    parser.add_argument("--check", action="store_true", help="write nothing, tell whether something would change")
    options = parser.parse_args()
    results = Results.read(*(options.results or RESULTS))
    wanted = {PAGE: render(PAGE.read_text(encoding="utf-8"), results)}
    wanted |= {PAGE.with_name(name): f"{svg}\n" for name, (draw, _) in PICTURES.items() if (svg := draw(results))}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is stale' if options.check else 'written'}")
        if not options.check:
            path.write_text(wanted[path], encoding="utf-8")
    raise SystemExit(1 if stale and options.check else 0)
