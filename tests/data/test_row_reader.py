"""What is not read, left out or misnamed is told; names of columns can be mapped."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from wishbone.data.source import load_pairs
from wishbone.errors import RequestError

ROWS = [{"q": f"question {n}?", "chosen": f"Answer {n}.", "rejected": f"No {n}.", "id": n} for n in range(4)]


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(RequestError) as refused:
        load_pairs(source, **options)
    return str(refused.value)


def test_completions_without_a_common_beginning_are_no_prompt(tmp_path: Path) -> None:
    for source in (ROWS, Dataset.from_list(ROWS)):
        said = refusal(source)
        assert "in 4 of 4 rows chosen and rejected begin differently" in said
        assert "Name the prompt's column in data.columns" in said
        assert set(said.rpartition("the columns are ")[2].split(", ")) == set(ROWS[0])
    alike = [{"chosen": f"A question {n}? Yes.", "rejected": f"A question {n}? No."} for n in range(4)]
    assert len(load_pairs([*alike, ROWS[0]])) == 5
    assert "begin differently" in refusal([*alike[:2], *ROWS[:3]], invalid_rows="drop")
    inside_a_word = [{"chosen": "Baikal it is.", "rejected": "Baltic Sea."}]
    assert "begin differently" in refusal(inside_a_word)
    talks = [{s: [{"role": "user", "content": s}, {"role": "assistant", "content": s}] for s in ("chosen", "rejected")}]
    assert "begin differently" in refusal(talks * 3, invalid_rows="drop")


def test_names_of_columns_are_mapped(tmp_path: Path) -> None:
    pairs = load_pairs(ROWS, columns={"prompt": "q"})
    assert pairs["prompt"][:] == [row["q"] for row in ROWS]
    Dataset.from_list(ROWS).to_parquet(tmp_path / "p.parquet")
    assert load_pairs(tmp_path / "p.parquet", columns={"prompt": "q"})["prompt"][:] == pairs["prompt"][:]
    assert load_pairs(Dataset.from_list(ROWS), columns={"prompt": "q"})["prompt"][:] == pairs["prompt"][:]
    stream = load_pairs(Dataset.from_list(ROWS).to_iterable_dataset(), columns={"prompt": "q"})
    assert [row["prompt"] for row in stream] == pairs["prompt"][:]
    judged = [{"prompt": "Q", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}]
    safer = load_pairs(judged, columns={"better_response_id": "safer_response_id"})
    assert safer["chosen"][0][0]["content"] == "b"
    named = [{"prompt": row["q"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in ROWS]
    assert load_pairs(named, columns={"prompt": "q"})["prompt"][:] == pairs["prompt"][:]


def test_a_mapped_column_that_is_missing_beside_one_of_that_name_is_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = [row | {"prompt": f"prompt {row['id']}?"} for row in ROWS]
    with caplog.at_level(logging.WARNING):
        assert load_pairs(rows, columns={"prompt": "qq"})["prompt"][0] == "prompt 0?"
    assert any("names 'qq' as prompt, but no row has such a column" in line for line in caplog.messages)


def test_a_column_is_left_out_on_purpose() -> None:
    row = {"prompt": "A?", "chosen": "B.", "rejected": "C.", "images": ["x.png"]}
    assert "images holds images" in refusal([row])
    assert "data.columns: {images: null}" in refusal([row])
    assert len(load_pairs([row], columns={"images": None})) == 1


def test_names_that_are_wrong_are_refused_with_the_remedy() -> None:
    assert "did you mean prompt: q?" in refusal(ROWS, columns={"q": "prompt"})
    assert "'query' as prompt, but no row has such a column" in refusal(ROWS, columns={"prompt": "query"})
    assert "named twice" in refusal(ROWS, columns={"prompt": "q", "instruction": "q"})


def test_columns_that_are_not_read_are_named_once_and_again_from_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({**row, "\ud800": 1}) + "\n" for row in ROWS))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "wishbone"):
            load_pairs(path, columns={"prompt": "q"})
        (line,) = caplog.messages
        assert line.endswith("these columns are not read: id, '\\ud800'")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "wishbone"):
        list(load_pairs(Dataset.from_list(ROWS * 200).to_iterable_dataset(), columns={"prompt": "q"}))
    assert caplog.messages == ["the stream: these columns are not read: id"]


def test_pairs_and_ties_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"instruction": "Q?", "generations": ["a", "b", "c"], "ratings": scores} for scores in ([1, 2, 2], [3, 3, 3])
    ]
    with caplog.at_level(logging.WARNING, "wishbone"):
        assert load_pairs(rows, pairs="all")["source_row"][:] == [1, 1]
    assert caplog.messages[0] == (
        "the list of rows: 2 pairs of 2 rows (data.pairs: all); left out: pairs with equal scores or no winner (4)"
    )
    assert "Lower data.least_margin" in refusal(rows[1:])
    assert "0 pairs of 2 rows" in refusal(rows, least_margin=5.0)
    plain = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    assert "needs scored or ranked completions" in refusal(plain, least_margin=1.0)
    stream = Dataset.from_list(rows[1:] * 150 + rows[:1]).to_iterable_dataset()
    assert [row["source_row"] for row in load_pairs(stream)] == [151]


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (
            "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]",
            "NumPy prints lists without commas",
        ),
        ("array([{'content': 'a', 'role': 'user'}], dtype=object)", "neither JSON nor what Python prints"),
        ('[{"role": "user", "content": "a"', "neither JSON nor what Python prints"),
    ],
)
def test_cells_that_look_like_messages_are_never_trained_as_text(cell: str, problem: str) -> None:
    assert problem in refusal([{"prompt": "a", "chosen": cell, "rejected": "b"}])


@pytest.mark.parametrize(
    "text", ['{"role": "admin", "content": 3}', "[1] First", "{x}", '[{"name": "a"}]', "[]", "array(3)"]
)
def test_texts_that_only_begin_like_lists_stay_texts(text: str) -> None:
    assert load_pairs([{"prompt": "a", "chosen": text, "rejected": "b"}])["chosen"][:] == [text]


def test_halves_of_surrogate_pairs_in_any_field_damage_only_their_row(tmp_path: Path) -> None:
    good = {"prompt": [{"role": "user", "content": "A"}], "chosen": "B", "rejected": "C"}
    half = "x\udc00"
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": half}}}
    bad = [
        {**good, "chosen": half},
        {**good, "prompt": [{"role": half, "content": "A"}]},
        {**good, "chosen": [{"role": "assistant", "content": "B", "reasoning_content": half}]},
        {**good, "chosen": [{"role": "assistant", "tool_calls": [call]}]},
        {**good, "prompt": [{"from": "function_call", "value": json.dumps({"name": half})}]},
        {**good, "tools": [{"name": half}]},
        {**good, "tools": json.dumps([{"name": half}])},
        {**good, "chat_template_kwargs": {half: 1}},
        {**good, "system": half},
        {**good, "history": [[half, "a"]]},
        {**good, "images": [half]},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, *bad]))
    assert load_pairs(path, invalid_rows="drop")["source_row"][:] == [1]
    said = refusal(path)
    assert f"{len(bad)} of {len(bad) + 1} rows" in said
    said.encode()


def test_a_directory_names_what_it_does_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    for name in (
        "train-0.jsonl",
        "train-1.jsonl.lz4",
        "extra.jsonl",
        "pairs.tsv",
        "README.md",
        ".hidden",
        "test.jsonl",
    ):
        (tmp_path / name).write_text(f"{pair}\n")
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    (tmp_path / "dataset_infos.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "wishbone"):
        assert len(load_pairs(tmp_path)) == 1
    (line,) = caplog.messages
    assert "4 files are not read: extra.jsonl, gone.jsonl, pairs.tsv, train-1.jsonl.lz4" in line


def test_a_directory_names_shards_that_are_missing_and_rows_that_may_be_there_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n"
    elsewhere = tmp_path / "elsewhere"
    directory = tmp_path / "data"
    for folder in (elsewhere, directory):
        folder.mkdir()
    for name in ("p-00000-of-00003.jsonl", "p-00002-of-00003.jsonl", "more.jsonl", "more.ndjson", "_draft.jsonl"):
        (directory / name).write_text(pair)
    (directory / "linked").symlink_to(elsewhere)
    (directory / "cut.jsonl").touch()
    with caplog.at_level(logging.WARNING, "wishbone"):
        assert len(load_pairs(directory)) == 4
    assert [message.split(": ", 1)[1] for message in caplog.messages] == [
        "2 files are not read: _draft.jsonl, linked. Rows are read from .jsonl, .ndjson, .json, .csv, .tsv, .parquet "
        "(text files also with .gz, .zst, .xz, .bz2)",
        "1 of 3 shards of 'p' are not there (counted from 0: 1)",
        "more.jsonl, more.ndjson are all read; if they hold the same rows, remove all but one",
        "1 file is empty: cut.jsonl",
    ]


@pytest.mark.parametrize("name", ["prompt", "question"])
def test_a_prompt_that_both_completions_repeat_is_refused(name: str) -> None:
    asked = "\n\nHuman: Which lake is the deepest?\n\nAssistant:"
    row = {name: asked, "chosen": f"{asked} Baikal.", "rejected": f"{asked} Como."}
    assert "in 1 of 1 row chosen and rejected both begin with the prompt" in refusal([row])
    assert "begin with the prompt" in refusal([row], turns=True)
    (pair,) = load_pairs([row], columns={name: None})
    assert pair["prompt"] == [{"role": "user", "content": "Which lake is the deepest?"}]
    echo = {name: "Say it again", "chosen": "Say it again, please.", "rejected": "No."}
    assert len(load_pairs([echo, {name: "Go", "chosen": "Go on", "rejected": "Go away"}])) == 2


def test_a_dialogue_as_the_prompt_of_texts_becomes_turns() -> None:
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Which lake?\n\nAssistant:", "chosen": " Baikal."}
    row |= {"rejected": " Como."}
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Which lake?")]
    (pair,) = load_pairs([row], turns=True)
    assert [(turn["role"], turn["content"]) for turn in pair["prompt"]] == turns
    assert pair["chosen"] == [{"role": "assistant", "content": "Baikal."}]
    (raw,) = load_pairs([row])
    assert raw["prompt"] == row["prompt"]
    (told,) = load_pairs([row | {"system": "Be brief.", "input": "In Asia."}])
    assert [turn["content"] for turn in told["prompt"]] == ["Be brief.", "Hi", "Hello", "Which lake?\nIn Asia."]
