"""Rows as public data sets write them (the table in docs/data-formats.md) give the same pairs from every container."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from wishbone.data.formats import FORMATS, read_pairs, recognize
from wishbone.data.source import load_pairs

pytestmark = pytest.mark.documents

PAGE = Path(__file__).parents[2] / "docs" / "data-formats.md"
LINE = re.compile(
    r"^\| (?P<who>[^|]+) \| `(?P<layout>\w+)` \| `(?P<row>\{.*\})` \| \[.*\]\(https://\S+\) \|$", re.MULTILINE
)
TABLE = [(m["who"], m["layout"], json.loads(m["row"])) for m in LINE.finditer(PAGE.read_text(encoding="utf-8"))]
NAMES = [who for who, _, _ in TABLE]
QUESTION, GOOD, BAD = "Which lake is the deepest?", "Lake Baikal.", "Lake Como."


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "is_caching_enabled", lambda: False)


def pairs_of(source: Any) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in load_pairs(source)]


def said(part: Any) -> str:
    """The words of a text, or of the messages, of a pair."""
    if isinstance(part, str):
        return part
    return " ".join(
        m["content"] if isinstance(m["content"], str) else "".join(block["text"] for block in m["content"])
        for m in part
    )


def test_the_table_has_every_layout() -> None:
    assert len(TABLE) > 25
    assert {layout for _, layout, _ in TABLE} == set(FORMATS)


@pytest.mark.parametrize(("who", "layout", "row"), TABLE, ids=NAMES)
def test_a_row_has_its_layout_and_all_its_words(who: str, layout: str, row: dict[str, Any]) -> None:
    found = recognize(row)
    assert found.layout == layout
    assert set(found.read).isdisjoint(found.unread) and {*found.read, *found.unread} == set(row)
    (pair,) = read_pairs(row, layout).pairs
    if isinstance(pair["prompt"], str):
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("The sky is", " blue.", " green.")
        return
    expected = "Answer the question.\n" + QUESTION if "Answer" in json.dumps(row) else QUESTION
    system = [{"role": "system", "content": "Be brief."}] if "Be brief." in json.dumps(row) else []
    earlier = ["Hi", "Hello."] if "history" in row and layout == "swift" else []
    assert pair["prompt"][: len(system)] == system
    assert [said([message]) for message in pair["prompt"][len(system) :]] == [*earlier, expected]
    assert [message["role"] for message in pair["prompt"][len(system) :]] == [
        *(["user", "assistant"] if earlier else []),
        "user",
    ]
    for side, words in (("chosen", GOOD), ("rejected", BAD)):
        assert [message["role"] for message in pair[side]] == ["assistant"]
        assert said(pair[side]) == words


def cells(row: dict[str, Any], write: Callable[[Any], str]) -> dict[str, str]:
    """The cells of a CSV file: texts as they are, numbers as digits, lists as `write` prints them."""
    return {
        name: value if isinstance(value, str) else "" if value is None else write(value) for name, value in row.items()
    }


def save_csv(path: Path, rows: list[dict[str, Any]], write: Callable[[Any], str], encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(cells(row, write) for row in rows)
    return path


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def zstandard(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def as_parquet(directory: Path, rows: list[dict[str, Any]]) -> Path:
    Dataset.from_list(rows).to_parquet(directory / "p.parquet")
    return directory / "p.parquet"


def saved(directory: Path, rows: list[dict[str, Any]]) -> Path:
    Dataset.from_list(rows).save_to_disk(directory / "saved")
    return directory / "saved"


CONTAINERS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "jsonl": lambda d, rows: written(d / "p.jsonl", lines(rows)),
    "jsonl with a byte order mark": lambda d, rows: written(d / "p.jsonl", b"\xef\xbb\xbf" + lines(rows)),
    "jsonl in UTF-16": lambda d, rows: written(d / "p.jsonl", lines(rows).decode().encode("utf-16")),
    "jsonl that is a list": lambda d, rows: written(d / "p.jsonl", json.dumps(rows, indent=1).encode()),
    "json": lambda d, rows: written(d / "p.json", json.dumps(rows).encode("utf-16")),
    "json of columns": lambda d, rows: written(
        d / "p.json", json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode()
    ),
    "csv with JSON": lambda d, rows: save_csv(d / "p.csv", rows, json.dumps),
    "csv with what Python prints": lambda d, rows: save_csv(d / "p.csv", rows, repr),
    "csv in UTF-16": lambda d, rows: save_csv(d / "p.csv", rows, json.dumps, "utf-16"),
    "parquet": as_parquet,
    "data set on disk": saved,
    "gz": lambda d, rows: written(d / "p.jsonl.gz", gzip.compress(lines(rows))),
    "zst": lambda d, rows: written(d / "p.jsonl.zst", zstandard(lines(rows))),
    "xz": lambda d, rows: written(d / "p.jsonl.xz", lzma.compress(lines(rows))),
    "bz2 without its ending": lambda d, rows: written(d / "p.jsonl", bz2.compress(lines(rows))),
    "data set": lambda d, rows: Dataset.from_list(rows),
    "stream": lambda d, rows: Dataset.from_list(rows).to_iterable_dataset(),
}


ENCODED = {
    "jsonl with a byte order mark",
    "jsonl in UTF-16",
    "csv in UTF-16",
    "gz",
    "zst",
    "xz",
    "bz2 without its ending",
}
"""Containers that hold the bytes of another one: whatever they hold, they are decoded alike."""


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_row_gives_the_same_pairs_from_every_container(container: str, tmp_path: Path) -> None:
    for number, (who, _, row) in enumerate(TABLE):
        if container in ENCODED and number % 5:
            continue
        place = tmp_path / str(number)
        place.mkdir()
        rows = [row, replaced(row, {"Como": "Gärda \U0001f600", "green": "grün"})]
        assert pairs_of(CONTAINERS[container](place, rows)) == pairs_as_read(number), who


@cache
def pairs_as_read(number: int) -> list[dict[str, Any]]:
    row = TABLE[number][2]
    return pairs_of([row, replaced(row, {"Como": "Gärda \U0001f600", "green": "grün"})])


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12).map(lambda text: f"a{text}.")


@pytest.mark.slow
@given(st.sampled_from(range(len(TABLE))), st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=2, max_size=3))
@settings(max_examples=20, deadline=None)
def test_any_words_are_the_same_from_lines_and_cells(
    tmp_path_factory: pytest.TempPathFactory, place: int, words: list[tuple[str, str, str]]
) -> None:
    """Quotation marks, line breaks and brackets of a text survive JSON, Python's print and CSV."""
    row = TABLE[place][2]
    rows = [replaced(row, {QUESTION: question, GOOD: good, BAD: bad + "!"}) for question, good, bad in words]
    directory = tmp_path_factory.mktemp("words")
    expected = pairs_of(rows)
    for container in ("jsonl", "jsonl in UTF-16", "csv with JSON", "csv with what Python prints", "data set"):
        assert pairs_of(CONTAINERS[container](directory, rows)) == expected, container


def replaced(value: Any, words: dict[str, str]) -> Any:
    """The value with other words, at any depth."""
    if isinstance(value, dict):
        return {name: replaced(item, words) for name, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, words) for item in value]
    if isinstance(value, str):
        for old, new in words.items():
            value = value.replace(old, new)
    return value
