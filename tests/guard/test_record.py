"""guard.jsonl: sound rows up to the checkpoint stay, whatever became of the file between two parts of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wishbone.guard.record import Record

ROWS = [{"kind": kind, "step": step, "value": step / 3} for step in (0, 2, 4) for kind in ("measurement", "note")]


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"kind": "measurement", "st', b"\0" * 5000, b"\xff\xfe\n", b"[1]\n", b'{"kind": "note"}\n', b"\n",
     b'{"kind": "note", "step": "2"}\n', b'{"kind": 1, "step": 2}\n', b"[" * 90_000 + b"\n",
     b'{"kind": "note", "step": 2' + b"0" * 5000 + b"}\n"],
)  # fmt: skip
@pytest.mark.parametrize("first", [False, True])
def test_a_damaged_row_goes_and_the_others_stay(tmp_path: Path, damage: bytes, first: bool) -> None:
    """At the beginning of the file a damaged row costs the one that it runs into; everywhere it costs no error."""
    path = tmp_path / "guard.jsonl"
    whole = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path.write_bytes(damage + whole if first else whole + damage)
    record = Record(tmp_path, writes=True)
    record.begin(2)
    record.add("measurement", 3, value=1.5)
    runs_into_a_row = first and damage and not damage.endswith(b"\n")
    expected = [*ROWS[1 if runs_into_a_row else 0 : 4], {"kind": "measurement", "step": 3, "value": 1.5}]
    assert record.rows == expected
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == expected


def test_a_process_that_does_not_write_keeps_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "guard.jsonl"
    text = json.dumps(ROWS[0]) + '\n{"kind": "measu'
    path.write_text(text, encoding="utf-8")
    record = Record(tmp_path, writes=False)
    record.begin(4)
    record.add("note", 5)
    assert record.rows == [ROWS[0], {"kind": "note", "step": 5}]
    assert path.read_text(encoding="utf-8") == text
