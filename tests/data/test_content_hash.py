"""Equal rows have equal hashes however they are stored; a change of one value, or of the order, changes the hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets

from wishbone.data.content_hash import content_hash

ROWS: list[dict[str, Any]] = [
    {
        "ids": list(range(n % 7)),
        "text": "x" * (n % 5) or None,
        "chat": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": None}][: n % 3],
        "image": {"bytes": bytes([n % 256]) * (n % 4), "path": None},
        "margin": n / 3,
        "flag": n % 2 == 0,
    }
    for n in range(2500)
]
COLUMNS = sorted(ROWS[0])


def hashed(rows: list[dict[str, Any]]) -> str:
    return content_hash(Dataset.from_list(rows), COLUMNS)


def test_how_rows_are_stored_does_not_count(tmp_path: Path) -> None:
    whole = Dataset.from_list(ROWS)
    parts = concatenate_datasets(
        [Dataset.from_list(ROWS[:7]), Dataset.from_list(ROWS[7:1600]), whole.select(range(1600, 2500))]
    )
    backwards = whole.select(range(2499, -1, -1)).select(range(2499, -1, -1))
    whole.save_to_disk(tmp_path / "saved", max_shard_size=20_000)
    mapped = whole.map(lambda row: row, batch_size=300, writer_batch_size=100)
    stored = [parts, backwards, Dataset.load_from_disk(tmp_path / "saved"), mapped]
    assert {content_hash(dataset, COLUMNS) for dataset in stored} == {hashed(ROWS)}


def test_the_type_of_ids_does_not_count() -> None:
    ids = [[1, 2], [], [3]]
    tables = [pa.table({"ids": pa.array(ids, pa.list_(kind))}) for kind in (pa.int32(), pa.int64())]
    tables.append(pa.table({"ids": pa.array(ids, pa.large_list(pa.int64()))}))
    assert len({content_hash(Dataset(table), ["ids"]) for table in tables}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"ids": [0, 1, 2, 4]},
        {"text": "y"},
        {"text": None},
        {"text": ""},
        {"chat": [{"role": "user", "content": "other"}]},
        {"chat": [{"role": "user", "content": None}]},
        {"image": {"bytes": b"zz", "path": None}},
        {"image": None},
        {"margin": 0.5},
        {"flag": True},
    ],
)
def test_one_value_counts(change: dict[str, Any]) -> None:
    rows = [*ROWS[:11], ROWS[11] | change, *ROWS[12:]]
    assert hashed(rows) != hashed(ROWS)


def test_order_and_where_values_end_count() -> None:
    assert hashed(ROWS[::-1]) != hashed(ROWS)
    apart = [
        Dataset.from_dict({"ids": ids, "text": texts})
        for ids, texts in (([[1, 2], []], ["ab", "c"]), ([[1], [2]], ["a", "bc"]))
    ]
    assert content_hash(apart[0], ["ids"]) != content_hash(apart[1], ["ids"])
    assert content_hash(apart[0], ["text"]) != content_hash(apart[1], ["text"])


def test_no_rows() -> None:
    empty = Dataset.from_dict({"ids": []})
    assert content_hash(empty, ["ids"]) != content_hash(Dataset.from_dict({"ids": [[]]}), ["ids"])
