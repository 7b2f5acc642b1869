"""Write docs/versions.json and the table of docs/versions.md from the records of test runs.

    python scripts/document_versions.py [RECORD...]

A record is what `pytest --record=FILE` wrote: `make test`, `make newest`, `make oldest` and `make gpu` leave one or two
in their environment, and these are read unless files are named. The name of a run is that of its file,
`record-NAME.json`. A run replaces the one of the same name in docs/versions.json; runs of other machines stay.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "versions.json"
PAGE = ROOT / "docs" / "versions.md"
TABLE = re.compile(r"(?<=<!-- generated: versions -->\n).*?(?=<!-- end -->)", re.DOTALL)
COLUMNS = ("locked", "newest", "oldest", "gpu")
Runs = dict[str, dict[str, Any]]


def name_of(record: Path) -> str:
    """The name of a run."""
    return record.stem.removeprefix("record-")


def column(name: str, runs: Runs) -> list[str]:
    """The cells of one run from top to bottom: when, where, result, versions."""
    run = runs[name]
    interpreted = runs.get(f"{name}-interpreter")
    cells = [run["date"], f"`{run['commit']}`", run["python"], run["gpu"] or run["machine"], counts(run)]
    cells.append(counts(interpreted) if interpreted else "")
    return [*cells, *(run["versions"].get(package, "") for package in packages(runs))]


def counts(run: dict[str, Any]) -> str:
    """How many tests passed, and how many did not."""
    return ", ".join(f"{count} {outcome}" for outcome, count in run["outcome"].items() if count)


def packages(runs: Runs) -> list[str]:
    """Every package that a run has a version of, in the order of pyproject.toml."""
    return list(dict.fromkeys(package for run in runs.values() for package in run["versions"]))


def table(runs: Runs) -> str:
    """The Markdown table: one column a run, one row for each package."""
    names = [name for name in COLUMNS if name in runs]
    head = ["Tested on", "Commit", "Python", "Machine", "All tests", "Kernels in Triton's interpreter"]
    left = [*head, *(f"`{package}`" for package in packages(runs))]
    rows = [["", *(f"`make {'test' if name == 'locked' else name}`" for name in names)], ["---"] * (len(names) + 1)]
    rows += [list(row) for row in zip(left, *(column(name, runs) for name in names), strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(files: list[str]) -> None:
    """Merge the records into what is kept, and write the table."""
    records = [Path(file) for file in files] or sorted(ROOT.glob(".venv*/record-*.json"))
    runs: Runs = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    runs |= {name_of(record): json.loads(record.read_text(encoding="utf-8")) for record in records}
    KEPT.write_text(json.dumps(dict(sorted(runs.items())), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(runs), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {', '.join(sorted(map(name_of, records))) or 'no new run'}")


if __name__ == "__main__":
    main(sys.argv[1:])
