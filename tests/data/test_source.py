"""Pairs are loaded from every kind of source; a row that does not fit is named by where it stands."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from small_tokenizers import assistant, dataset, user

from wishbone.data import text_files
from wishbone.data.source import load_pairs
from wishbone.errors import RequestError

TEXTS = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
CHATS = [{"prompt": [user("q\u2028é")], "chosen": [assistant("a")], "rejected": [assistant("b")]}] * 2
CALLING = {
    "prompt": [user("q")],
    "chosen": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": i}}}]} for i in (1,)],
    "rejected": [assistant("b")],
    "tools": [{"name": "f"}],
}


def pairs_of(loaded: Any) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in loaded]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(RequestError) as refused:
        load_pairs(source, **options)
    return str(refused.value)


def test_json_lines_with_everything_that_editors_do_to_them(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    first, second, third = (json.dumps(row) for row in TEXTS)
    path.write_bytes(b"\xef\xbb\xbf" + f"{first}\r\n\r\n   \n{second}\n\n{third}".encode())
    loaded = load_pairs(path)
    assert pairs_of(loaded) == TEXTS
    assert list(loaded["source_row"]) == [1, 4, 6]


def test_compressed_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(lines(CHATS).encode()))
    assert pairs_of(load_pairs(str(path))) == CHATS
    path.write_bytes(path.read_bytes()[:-9])
    assert "compressed file is damaged" in refusal(path)


def test_all_broken_lines_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = json.dumps(TEXTS[0]).encode()
    bad = [b'{"prompt": "a"', b"[1]", b'"\xff"', json.dumps({**TEXTS[0], "chosen": None}).encode()]
    path.write_bytes(b"\n".join([good, *bad, good, *[b"{"] * 20]))
    message = refusal(path)
    assert "24 of 26 rows do not fit" in message
    for place in (
        "line 2 is not JSON",
        "line 3 is JSON, but not an object",
        "line 4 is not UTF-8",
        "line 5 chosen is empty (null)",
    ):
        assert place in message
    assert message.count("\n") == 11
    assert message.endswith("... and 14 more")


def test_rows_that_do_not_fit_are_dropped_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines([TEXTS[0], {**TEXTS[1], "rejected": 5}, 7, TEXTS[2]]))
    with caplog.at_level(logging.WARNING, "wishbone"):
        loaded = load_pairs(path, invalid_rows="drop")
    assert list(loaded["source_row"]) == [1, 4]
    assert "2 of 4 rows do not fit and are dropped" in caplog.text
    assert "line 2 rejected is a number" in caplog.text
    assert "2 of 4" in refusal(path)
    assert "2 of 2 rows" in refusal([7, None], invalid_rows="drop")


@pytest.mark.parametrize(
    "content",
    [
        TEXTS,
        {"version": 2, "rows": TEXTS},
        {name: [row[name] for row in TEXTS] for name in TEXTS[0]},
    ],
    ids=["list", "object with one list", "columns"],
)
def test_json(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8-sig")
    loaded = load_pairs(path)
    assert pairs_of(loaded) == TEXTS
    assert list(loaded["source_row"]) == [1, 2, 3]


def test_a_machine_with_much_free_memory_reserves_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's `read` of a number of bytes reserves as many; this one would be refused by any machine."""
    monkeypatch.setattr(text_files.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**53))
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(TEXTS))
    assert pairs_of(load_pairs(path)) == TEXTS


def test_json_that_is_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(lines(TEXTS))
    assert pairs_of(load_pairs(path)) == TEXTS


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"a": 1},\n {"a": }]', "is not JSON: Expecting value at line 2, column 8"),
        ('{"prompt": "a"}', "has no list of rows"),
        ('{"prompt": ["a"], "chosen": ["a", "b"], "rejected": ["c"]}', "columns have different lengths"),
        ("7", "has no list of rows"),
        ("[7]", "row 1 is not an object"),
        ("[]", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_json_that_holds_no_rows(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(content)
    assert problem in refusal(path)
    assert str(path) in refusal(path)


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    rows = [{"prompt": 'a, "b"\nc', "chosen": "x" * 200_000, "rejected": '{"no": "message"}'}, TEXTS[1]]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(rows)
    assert pairs_of(load_pairs(path)) == rows


def test_csv_with_messages_as_json(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CHATS[0])
        writer.writerow([json.dumps(value) for value in CHATS[0].values()])
    assert pairs_of(load_pairs(path)) == CHATS[:1]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,b", "row 1 (line 2) has fewer fields than the header: no rejected"),
        ("a,b,c,d", "row 1 (line 2) has more fields"),
        ('a,b,"c', "unexpected end of data"),
    ],
)
def test_csv_with_a_broken_row(tmp_path: Path, row: str, problem: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f"prompt,chosen,rejected\n{row}")
    assert problem in refusal(path)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    dataset(*(row | {"score": 1.5} for row in CHATS)).to_parquet(path)
    assert pairs_of(load_pairs(path)) == CHATS
    path.write_bytes(path.read_bytes()[:-4])
    assert "cannot be read as a Parquet file" in refusal(path)


def test_messages_with_more_than_text_survive_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        lines(
            CHATS * 600
            + [CALLING, {**CALLING, "tools": '[{"name": "f"}]'}, CHATS[0] | {"chat_template_kwargs": {"a": None}}]
        )
    )
    loaded = load_pairs(path)
    assert pairs_of(loaded)[1199:1202] == [CHATS[0], *({k: CALLING[k] for k in CHATS[0]} for _ in range(2))]
    assert [t and json.loads(t) for t in loaded["tools"][-4:]] == [None, CALLING["tools"], CALLING["tools"], None]
    assert list(loaded["chat_template_kwargs"][-2:]) == [{}, {"a": None}]


def test_parquet_of_what_was_loaded_loads_again(tmp_path: Path) -> None:
    load_pairs([CALLING]).to_parquet(tmp_path / "pairs.parquet")
    assert pairs_of(load_pairs(tmp_path / "pairs.parquet")) == pairs_of([CALLING])


def test_rows_with_values_of_mixed_types_are_row_problems() -> None:
    rows = [
        TEXTS[0],
        {**TEXTS[0], "chosen": 4},
        {**TEXTS[0], "chosen": ["x"]},
        {**TEXTS[0], "other": 3},
        {"prompt": "a"},
    ]
    message = refusal(rows)
    assert "3 of 5 rows" in message
    assert "row 2 chosen is a number" in message
    assert "row 3 chosen is a list" in message
    assert "row 5 chosen is missing; rejected is missing" in message


def test_a_saved_data_set_and_its_splits(tmp_path: Path) -> None:
    splits = DatasetDict({"train": dataset(*TEXTS), "test": dataset(*CHATS)})
    splits.save_to_disk(tmp_path / "saved")
    assert pairs_of(load_pairs(tmp_path / "saved", split="test")) == CHATS
    assert pairs_of(load_pairs(tmp_path / "saved" / "train")) == TEXTS
    assert "no split 'dev'; its splits: train, test" in refusal(tmp_path / "saved", split="dev")
    assert pairs_of(load_pairs(splits)) == TEXTS
    (tmp_path / "saved" / "train" / "state.json").unlink()
    assert "save_to_disk" in refusal(tmp_path / "saved" / "train")


def test_a_directory_of_files(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(lines(TEXTS[2:]))
    (tmp_path / "a.json").write_text(json.dumps(TEXTS[:2]))
    (tmp_path / "README.md").write_text("about")
    loaded = load_pairs(tmp_path)
    assert pairs_of(loaded) == TEXTS
    assert list(loaded["source_row"]) == [1, 2, 3]
    (tmp_path / "b.jsonl").write_text("{\n")
    assert "b.jsonl line 1 is not JSON" in refusal(tmp_path)


def test_a_directory_whose_file_names_tell_splits_apart(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00002.jsonl").write_text(lines(TEXTS[:1]))
    (tmp_path / "data" / "train-00001-of-00002.jsonl").write_text(lines(TEXTS[1:2]))
    (tmp_path / "data" / "test.jsonl").write_text(lines(TEXTS[2:]))
    assert pairs_of(load_pairs(tmp_path)) == TEXTS[:2]
    assert pairs_of(load_pairs(tmp_path, split="test")) == TEXTS[2:]
    assert "no file belongs to the split 'validation'" in refusal(tmp_path, split="validation")


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "pairs_train.jsonl").write_text("")
    assert "no such file or directory; similar: pairs_train.jsonl" in refusal(tmp_path / "pairs_trian.jsonl")
    assert "nor is there a directory" in refusal(str(tmp_path / "nowhere" / "x.jsonl"))
    assert "has no rows" in refusal(tmp_path / "pairs_train.jsonl")
    (tmp_path / "pairs.txt").write_text("x")
    assert "'.txt' cannot be read; use .jsonl" in refusal(tmp_path / "pairs.txt")
    (tmp_path / "empty").mkdir()
    assert "the directory has no file to read" in refusal(tmp_path / "empty")


def test_the_hub_out_of_reach_is_one_line_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ultrafeedback").mkdir()
    message = refusal("ultrafeedbak")
    assert "the hub cannot be reached" in message
    assert "similar: ultrafeedback" in message
    assert "download the data set" in message
    assert "\n" not in message
    assert "hub cannot be reached" in refusal("someone/some-pairs:default")


def test_rows_before_the_first_that_has_a_layout_are_rows_that_do_not_fit() -> None:
    message = refusal([{"about": "this file"}, *TEXTS])
    assert "1 of 4 rows" in message
    assert "row 1 has columns of no known layout: about" in message
    assert "these columns are not those of a preference pair: about (text)" in refusal([{"about": "x"}] * 500)


def test_a_data_set_in_memory_and_on_disk(tmp_path: Path) -> None:
    rows = dataset(*(row | {"digest": b"x"} for row in TEXTS))
    assert pairs_of(load_pairs(rows)) == TEXTS
    rows.save_to_disk(tmp_path / "rows")
    shuffled = load_from_disk(tmp_path / "rows").select([2, 0]).with_format("numpy")
    loaded = load_pairs(shuffled)
    assert pairs_of(loaded) == [TEXTS[2], TEXTS[0]]
    assert list(loaded["source_row"]) == [1, 2]


def test_what_was_read_is_found_again_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines(TEXTS))
    first = load_pairs(path)
    with monkeypatch.context() as patched:
        patched.setattr("wishbone.data.files.read_rows", lambda files, columns: iter(()))
        again = load_pairs(path)
        assert pairs_of(again) == TEXTS
        assert again._fingerprint == first._fingerprint
        assert again.cache_files == first.cache_files != []
        assert "no rows" in refusal(path, system_prompt="x")
    path.write_text(lines(TEXTS[:2]))
    assert pairs_of(load_pairs(path)) == TEXTS[:2]
    before = path.stat()
    path.write_text(lines(TEXTS[1:]))  # as long as before, with the times of another file, as `cp -p` gives
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pairs_of(load_pairs(path)) == TEXTS[1:]


def test_nothing_is_left_in_the_cache_by_a_file_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines([*TEXTS, 7]))
    assert "line 4" in refusal(path)
    assert [file for file in (tmp_path / "cache").rglob("*.*") if file.suffix != ".lock"] == []


def test_a_stream_is_looked_at_when_it_is_read() -> None:
    rows = [{"instruction": f"q{i}", "chosen": "a", "rejected": "b" if i != 150 else "", "junk": i} for i in range(200)]
    read = []
    stream = dataset(*rows).to_iterable_dataset().map(lambda row: read.append(1) or row)
    loaded = load_pairs(stream, system_prompt="Be brief.")
    assert len(read) <= 1
    first = next(iter(loaded))
    assert first == {
        "prompt": [{"role": "system", "content": "Be brief."}, user("q0")],
        "chosen": [assistant("a")],
        "rejected": [assistant("b")],
        "source_row": 1,
    }
    assert len(read) < 200
    assert [row["source_row"] for row in loaded] == list(range(1, 201))


def test_a_stream_refuses_or_drops_rows_that_do_not_fit() -> None:
    rows = dataset(*({**TEXTS[0], "rejected": None if i == 120 else "b"} for i in range(150)))
    with pytest.raises(RequestError, match="row 121 rejected is empty"):
        list(load_pairs(rows.to_iterable_dataset()))
    numbers = [row["source_row"] for row in load_pairs(rows.to_iterable_dataset(), invalid_rows="drop")]
    assert numbers == [n for n in range(1, 151) if n != 121]
    rows = dataset(*({**TEXTS[0], "rejected": None if 100 <= i < 200 else "b"} for i in range(210)))
    numbers = [row["source_row"] for row in load_pairs(rows.to_iterable_dataset(), invalid_rows="drop")]
    assert numbers == [*range(1, 101), *range(201, 211)]


def test_a_data_set_of_token_ids_only_gets_row_numbers() -> None:
    ids = Dataset.from_dict({"prompt_ids": [[1], [2]], "chosen_ids": [[3], [4]], "rejected_ids": [[5], [6]]})
    loaded = load_pairs(ids)
    assert list(loaded["source_row"]) == [1, 2]
    assert list(loaded["chosen_ids"]) == [[3], [4]]
    assert load_pairs(loaded) is loaded


def test_what_is_no_source_is_refused() -> None:
    assert "a int is not a source of pairs" in refusal(7)


def test_what_datasets_writes_beside_kept_pairs_is_not_read_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines([{"prompt": f"{n}?", "chosen": f"{n}.", "rejected": "No."} for n in range(4)]))
    first = load_pairs(path)
    first.filter(lambda row: row["source_row"] > 1)
    first.map(lambda row: {"other": row["source_row"]}, remove_columns=first.column_names)
    (kept,) = (tmp_path / "cache" / "wishbone").glob("pairs-*")
    assert len(list(kept.glob("*.arrow"))) == 3
    again = load_pairs(path)
    assert again.column_names == first.column_names and again.to_list() == first.to_list()


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (["helpful-base/train.jsonl", "helpful-base/test.jsonl", "harmless-base/train.jsonl"], "train", [0, 2]),
        (["pairs_train.jsonl", "pairs_test.jsonl"], "train", [0]),
        (["pairs_train.jsonl", "pairs_test.jsonl"], "test", [1]),
        (["train/test-cases.jsonl", "test/test-cases.jsonl"], "test", [1]),
        (["data/train_prefs-00000-of-00001.jsonl", "data/train_sft-00000-of-00001.jsonl"], "train_prefs", [0]),
        (["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"], "train", [0, 1]),
        (["latest.jsonl", "contest.jsonl", "validated.jsonl"], "train", [1, 0, 2]),
    ],
)
def test_splits_of_a_directory_are_told_apart(tmp_path: Path, names: list[str], split: str, read: list[int]) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        row = {"prompt": f"{number}", "chosen": "a", "rejected": "b"}
        (tmp_path / name).write_text(json.dumps(row), encoding="utf-8")
    found = [int(text) for text in load_pairs(tmp_path, split=split)["prompt"]]
    assert sorted(found) == sorted(read)


def test_a_part_of_a_split_is_not_the_split(tmp_path: Path) -> None:
    for name in ("train_prefs", "train_sft"):
        (tmp_path / f"{name}-00000-of-00001.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    with pytest.raises(RequestError, match="no file belongs to the split 'train'; the files are train_prefs-00000"):
        load_pairs(tmp_path)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_asked_once() -> None:
    with socket.socket() as closed:  # nobody listens there
        closed.bind(("127.0.0.1", 0))
        program = "from wishbone.data.source import load_pairs; load_pairs('nobody/nothing')"
        environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{closed.getsockname()[1]}"}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "the hub cannot be reached, where it may be a data set" in done.stderr
    assert "Retry" not in done.stderr
