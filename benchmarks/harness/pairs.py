"""Real pairs for a measurement: some rows to train on and some to hold out, in one form for every system."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.results import Row


def split_pairs(data: str, train: int, heldout: int) -> dict[str, list[Row]]:
    """Return the first `train` pairs of a file and its last `heldout` ones, as rows of prompt, chosen and rejected.

    Raises:
        SystemExit: the file has fewer pairs.
    """
    from wishbone.data.source import load_pairs

    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in load_pairs(data)]
    if len(rows) < train + heldout:
        raise SystemExit(f"{data} has {len(rows)} pairs, fewer than {train} + {heldout}; ask for fewer")
    return {"train": rows[:train], "heldout": rows[len(rows) - heldout :]}


def write_pairs(path: Path, data: str, train: int, heldout: int = 0) -> str:
    """Write what `split_pairs` returns to a JSON file, for child processes that lack Wishbone; return its path."""
    path.write_text(json.dumps(split_pairs(data, train, heldout)), encoding="utf-8")
    return str(path)


def read_pairs(path: str) -> dict[str, list[Row]]:
    """Return what `write_pairs` wrote."""
    found: dict[str, list[Row]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found
