"""Whatever stands in a file of pairs, it is read or refused in words, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ordinary_user import ordinary_user
from soak.pair_files import LAYOUTS, TARGETS, sound_row
from soak.trials import Target, run_case

from wishbone.data import text_files
from wishbone.data.json_text import NotJsonError, parse_json, unstorable
from wishbone.data.source import load_pairs
from wishbone.data.tokenize import tokenize_pairs
from wishbone.errors import RequestError

SEEDS = range(40)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "wishbone"


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_files_damaged_at_random_are_read_or_refused(target: Target, tmp_path: Path) -> None:
    outcomes = [run_case(target, seed, tmp_path / "case") for seed in SEEDS]
    assert not [outcome for outcome in outcomes if outcome.is_finding]
    kinds = {outcome.kind for outcome in outcomes}
    assert kinds == {"read", "refused"} or target.name == "other"


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(RequestError) as error:
        load_pairs(path, **options)  # type: ignore[arg-type]
    return str(error.value)


GOOD = [sound_row("text", number) for number in range(3)]
HOSTILE_LINES = {
    "an integer of 5,000 digits": '{"prompt": "a", "chosen": "b", "rejected": "c", "n": ' + "9" * 5000 + "}",
    "nested 100,000 deep": "[" * 100_000,
    "half of a surrogate pair": '{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}',
    "not UTF-8": b"\xff\xfe{}",
    "not JSON": "{",
    "no object": "[1]",
    "no text": '{"prompt": 1, "chosen": "b", "rejected": "c"}',
    "tools nested too deeply": json.dumps({**GOOD[0], "tools": "[" * 500 + "]" * 500}),
    "an integer beyond 64 bits in the template's settings": json.dumps(
        {**GOOD[0], "chat_template_kwargs": {"n": 2**70}}
    ),
}


@pytest.mark.parametrize("line", HOSTILE_LINES.values(), ids=HOSTILE_LINES)
def test_a_line_that_is_no_row_is_refused_by_its_number_or_left_out_alone(line: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps(row).encode() for row in GOOD]
    lines.insert(1, line if isinstance(line, bytes) else line.encode())
    path.write_bytes(b"\n".join(lines))
    assert "1 of 4 rows does not fit" in refusal(path)
    assert "line 2" in refusal(path)
    assert load_pairs(path, invalid_rows="drop")["source_row"][:] == [1, 3, 4]


def test_rows_of_csv_that_are_damaged_are_left_out_alone(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(b'prompt,chosen,rejected\na,b,c\nd,\xff\xfe,f\n"g"x,h,i\nj,k\nl,m,n\n')
    said = refusal(path)
    assert "3 of 5 rows do not fit" in said
    for problem in ("row 2 (line 3) is not UTF-8", "row 3 (line 4) is not CSV", "row 4 (line 5) has fewer fields"):
        assert problem in said
    assert load_pairs(path, invalid_rows="drop")["prompt"][:] == ["a", "l"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'prompt,chosen,rejected\na,b,c\nd,"e,f\ng,h,i\n', "is a quotation mark not closed?"),
        (b"prompt;chosen;rejected\na;b;c\n", "columns are separated by commas"),
        (b"prompt,chosen,chosen\na,b,c\n", "the header names 'chosen' twice"),
        (b"\xff\xfep\0r\0\na,b,c\n", "ends inside a character of UTF-16"),
    ],
)
def test_csv_that_is_damaged_as_a_whole_is_refused_even_when_rows_may_be_dropped(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    assert problem in refusal(path, invalid_rows="drop")


@pytest.mark.parametrize("name", ["pairs.jsonl.gz", "pairs.json.gz", "pairs.csv.gz"])
@pytest.mark.parametrize("damage", ["cut off", "flipped", "no gzip", "something behind it"])
def test_damaged_compression_is_one_refusal(name: str, damage: str, tmp_path: Path) -> None:
    lines = [json.dumps(sound_row("text", n)) for n in range(200)]
    if ".csv" in name:
        lines = ["prompt,chosen,rejected", *(f"{n},{n * n},{n + n}" for n in range(3, 200))]
    content = gzip.compress("\n".join(lines).encode())
    middle = len(content) // 2
    damaged = {
        "cut off": content[:middle],
        "flipped": content[:middle]
        + bytes(byte ^ 0xFF for byte in content[middle : middle + 40])
        + content[middle + 40 :],
        "no gzip": b"\x1f\x8c" + content,
        "something behind it": content + b"more",
    }[damage]
    path = tmp_path / name
    path.write_bytes(damaged)
    said = refusal(path, invalid_rows="drop")
    assert said.startswith(f"{path}: the compressed file is damaged (")
    assert said.endswith("; write it again")


def test_a_small_compressed_file_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LONGEST_LINE", 2**20)
    monkeypatch.setattr(text_files, "ALWAYS_READ", 2**20)
    for name in ("one.jsonl.gz", "one.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"x" * 2**21))
        assert "line 1 is longer than 1 MiB" in refusal(tmp_path / name)
    (tmp_path / "one.json.gz").write_bytes(gzip.compress(b"[" + b" " * 2**22))
    assert "has more than 1 MiB of JSON" in refusal(tmp_path / "one.json.gz")
    (tmp_path / "field.csv").write_bytes(b'prompt,chosen,rejected\n"' + (b"x" * 2**16 + b"\n") * 17)
    assert "field larger than field limit" in refusal(tmp_path / "field.csv")


def test_a_file_that_the_system_does_not_read_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.symlink_to("/proc/self/mem")
    if not path.is_file():
        pytest.skip("needs /proc")
    assert refusal(path) == f"{path}: cannot be read (Input/output error); check the file and its permissions"


def test_what_may_not_be_read_is_refused(tmp_path: Path) -> None:
    """A file, a directory, and a directory in one that could be read without it: with other pairs than asked for."""
    inner = tmp_path / "inner"
    inner.mkdir()
    for path in (tmp_path / "pairs.jsonl", inner / "pairs.jsonl"):
        path.write_text("{}")
    for path, asked, said in (
        (inner / "pairs.jsonl", inner / "pairs.jsonl", "cannot be read (Permission denied)"),
        (inner, inner, "cannot be looked up (Permission denied)"),
        (inner, tmp_path, "inner cannot be listed; check the permissions"),
    ):
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            with ordinary_user():
                assert said in refusal(asked)
        finally:
            path.chmod(mode)


ODD_NAMES = ["~nosuchuser/pairs.jsonl", "n" * 300, "n" * 300 + ".jsonl", "a\0b.jsonl", "./\ud800.jsonl"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_that_no_file_has_are_refused(name: str) -> None:
    with pytest.raises(RequestError) as error:
        load_pairs(name)
    assert len(str(error.value)) < 400


def test_parquet_is_read_as_it_is_stored_whatever_it_says_of_its_columns(tmp_path: Path) -> None:
    """Metadata may call a text an image with a path, which would be opened."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"not an image")
    image = pa.array([{"bytes": None, "path": str(secret)}] * 2)
    table = pa.table({"prompt": image, "chosen": ["a", "b"], "rejected": ["c", "d"]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"prompt": {"_type": "Image"}}}})}
    )
    pq.write_table(table, tmp_path / "pairs.parquet")
    said = refusal(tmp_path / "pairs.parquet")
    assert "prompt (an object)" in said
    assert "not an image" not in said


def test_values_of_parquet_that_python_does_not_have_are_problems_of_their_row(tmp_path: Path) -> None:
    when = pa.array([0, 2**62], pa.timestamp("us"))
    table = pa.table({"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"], "score_A": when})
    pq.write_table(table, tmp_path / "pairs.parquet")
    said = refusal(tmp_path / "pairs.parquet")
    assert "row 2 score_A cannot be read" in said
    assert load_pairs(tmp_path / "pairs.parquet", invalid_rows="drop")["prompt"][:] == ["a"]


def test_a_saved_data_set_whose_offsets_are_lies_is_refused(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([sound_row("text", number) for number in range(50)])
    rows.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    content = arrow.read_bytes()
    offsets = pa.array([row["prompt"] for row in rows]).buffers()[1].to_pybytes()
    place = content.index(offsets[:64])
    arrow.write_bytes(content[: place + 40] + b"\xff\xff\xff\x7f" + content[place + 44 :])
    assert "is not a complete data set of save_to_disk" in refusal(tmp_path / "saved")


def test_a_saved_data_set_that_was_replaced_under_its_name_is_read_again(tmp_path: Path) -> None:
    for number in (1, 2):
        rows = datasets.Dataset.from_list([sound_row("text", number)])
        rows.save_to_disk(tmp_path / "saved")
        state = tmp_path / "saved" / "state.json"
        state.write_text(json.dumps({**json.loads(state.read_text()), "_fingerprint": "the same"}))
        assert load_pairs(tmp_path / "saved")["prompt"][:] == [sound_row("text", number)["prompt"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "ids"])
@pytest.mark.parametrize("damage", ["cut", "cut between batches", "empty", "flipped", "gone"])
def test_a_damaged_file_in_the_cache_is_made_again_and_said(
    damage: str, kind: str, tmp_path: Path, own_cache: Path, chatml, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(sound_row("text", number)) + "\n" for number in range(1100)))
    whole = tokenize_pairs(load_pairs(path), chatml)["chosen_ids"][:]
    (stored,) = own_cache.glob(f"{kind}-*/*.arrow")
    content = stored.read_bytes()
    message = content.find(b"\xff\xff\xff\xff", len(content) // 2)  # a batch of the stream begins with these bytes
    assert message > 0
    damaged = {
        "cut": content[: len(content) // 2],
        "cut between batches": content[:message],
        "empty": b"",
        "flipped": content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    }
    stored.unlink()
    if damage in damaged:
        stored.write_bytes(damaged[damage])
    again = tokenize_pairs(load_pairs(path), chatml)
    assert again["chosen_ids"][:] == whole
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert f"/{kind}-" in warning
    assert "is damaged" in warning
    caplog.clear()
    tokenize_pairs(load_pairs(path), chatml)
    assert not caplog.records


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_sound_layout_of_the_fuzzer_is_read(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(sound_row(layout, number)) + "\n" for number in range(3)))
    assert load_pairs(path)["source_row"][:] == [1, 2, 3]


def test_what_json_may_hold() -> None:
    for text in ("[" * 100_000, "9" * 5000, "{", b"\xff"):
        with pytest.raises(NotJsonError, match=r"^is "):
            parse_json(text)
    deep: object = 1
    for _ in range(70):
        deep = [deep]
    for value in (deep, 2**63, float("nan"), "\ud800", {"\ud800": 1}, {1: 2}, b"x", [{"a": (1,)}]):
        assert unstorable(value)
    assert unstorable({"a": [1, -(2**63), 0.5, None, True, "é", {"b": []}]}) is None
