"""What public rows say in spellings of their own: calls, thoughts, tools, cells; prompts under other names."""

from __future__ import annotations

import csv
import json

import pytest
from datasets import Dataset

from wishbone.data.lost_text import search
from wishbone.data.message_forms import with_known_keys
from wishbone.data.messages import message
from wishbone.data.source import load_pairs
from wishbone.data.written_values import read_messages
from wishbone.errors import RequestError

QUESTION = [{"role": "user", "content": "Which lake is the deepest?"}]
PAIR = {"prompt": QUESTION, "chosen": "Lake Baikal.", "rejected": "Lake Como."}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds numbers."}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def _chosen(message):
    return load_pairs([PAIR | {"chosen": [message]}])[0]["chosen"][0]


def test_a_former_function_call_is_a_tool_call():
    call = {"name": "add", "arguments": '{"a": 2}'}
    assert _chosen({"role": "assistant", "content": None, "function_call": call})["tool_calls"] == [CALL]


@pytest.mark.parametrize("calls", [[CALL], json.dumps([CALL]), [json.dumps(CALL)]])
def test_tool_calls_may_be_written_as_json(calls):
    assert _chosen({"role": "assistant", "content": "", "tool_calls": calls})["tool_calls"] == [CALL]


def test_tool_calls_that_are_no_calls_are_refused():
    with pytest.raises(RequestError, match="tool_calls that are not a list of objects"):
        _chosen({"role": "assistant", "content": "", "tool_calls": "add(a=2)"})


def test_calls_and_thoughts_of_sharegpt_turns_are_kept():
    turns = [{"from": "human", "value": "2 + 2?"}]
    answer = {"from": "gpt", "value": None, "tool_calls": [CALL], "reasoning_content": "Use the tool.", "weight": 1}
    row = {"conversations": turns, "chosen": answer, "rejected": {"from": "gpt", "value": "5"}}
    found = load_pairs([row])[0]["chosen"][0]
    assert found == {"role": "assistant", "tool_calls": [CALL], "reasoning_content": "Use the tool.", "weight": 1}


@pytest.mark.parametrize("tools", [[json.dumps(TOOL)], TOOL, json.dumps(TOOL), json.dumps([json.dumps(TOOL)])])
def test_tools_are_read_as_one_object_or_as_json_texts(tools):
    assert json.loads(load_pairs([PAIR | {"tools": tools}])[0]["tools"]) == [TOOL]


def test_items_of_tools_are_objects():
    with pytest.raises(RequestError, match="tools item 1 is text; it must be an object"):
        load_pairs([PAIR | {"tools": ["add(a, b)"]}])


@pytest.mark.parametrize("key", ["thought", "thoughts", "think", "reasoning_details"])
def test_thoughts_under_other_names_are_found_and_given_as_the_templates_name_them(key):
    said = [{"type": "reasoning.text", "text": "Siberia."}] if key == "reasoning_details" else "Siberia."
    thought = {"role": "assistant", "content": "Baikal.", key: said}
    assert [part.text for part in search([thought], "Baikal.").lost] == ["Siberia."]
    assert with_known_keys(thought) == {"role": "assistant", "content": "Baikal.", "reasoning_content": "Siberia."}


@pytest.mark.parametrize("content", ["", None])
def test_a_refusal_is_the_answer(content):
    refused = {"role": "assistant", "content": content, "refusal": "I cannot help with that."}
    assert [part.text for part in search([refused], "").lost] == ["I cannot help with that."]
    assert with_known_keys(refused) == {"role": "assistant", "content": "I cannot help with that."}


@pytest.mark.parametrize(("name", "value"), [("context", "Baikal"), ("input", "eepes")])
def test_a_column_repeats_the_prompt_only_if_the_prompt_says_its_words(name, value):
    with pytest.raises(RequestError, match="is not in the prompt"):
        load_pairs([PAIR | {name: value}])


def test_a_prompt_under_another_name_beside_texts_that_begin_alike_is_refused():
    rows = [
        {"user_prompt": f"Which lake, {i}?", "chosen": "The lake is Baikal.", "rejected": "The lake is Como."}
        for i in range(3)
    ]
    with pytest.raises(RequestError, match="column user_prompt seems to hold the prompt"):
        load_pairs(rows)
    assert load_pairs(rows, columns={"prompt": "user_prompt"})[0]["prompt"] == "Which lake, 0?"
    assert load_pairs(rows, columns={"prompt": None})[0]["prompt"] == "The lake is"


def test_half_a_character_in_the_arguments_of_a_call_is_named():
    call = {"function": {"name": "add", "arguments": '{"a": "\\udc00"}'}}
    bad = PAIR | {"chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
    with pytest.raises(RequestError, match=r"row 2 chosen message 1 .*half of a surrogate pair"):
        load_pairs([PAIR, bad])
    assert len(load_pairs([PAIR, bad], invalid_rows="drop")) == 1


def in_containers(rows, folder):
    """The same rows as a list, in a JSON lines file, in a data set and in a Parquet file."""
    lines, table = folder / "rows.jsonl", folder / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Dataset.from_list(rows).to_parquet(table)
    return [rows, str(lines), Dataset.from_list(rows), str(table)]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("lake_question", "Which lake?"),
        ("problem", "Which lake is the deepest?"),
        ("dialogue", [{"role": "user", "content": "Which lake is the deepest?"}]),
        ("conversation", [{"from": "human", "value": "Which lake is the deepest?"}]),
    ],
)
def test_what_may_be_the_prompt_is_refused_in_every_container(tmp_path, name, asked):
    rows = [{name: asked, "chosen": "The lake is Baikal.", "rejected": "The lake is Como."}]
    for source in in_containers(rows, tmp_path):
        with pytest.raises(RequestError, match=f"column {name} seems to hold the prompt"):
            load_pairs(source)
        assert load_pairs(source, columns={"prompt": None})[0]["prompt"] == "The lake is"


@pytest.mark.parametrize(("name", "value"), [("task", "open qa"), ("user", "anna"), ("conversation", [])])
def test_what_only_describes_a_row_is_no_prompt(tmp_path, name, value):
    rows = [{name: value, "chosen": "The lake is Baikal.", "rejected": "The lake is Como."}]
    assert load_pairs(rows)[0]["prompt"] == "The lake is"


def test_a_conversation_that_the_pair_holds_is_no_prompt(tmp_path):
    asked, answer = {"role": "user", "content": "Which lake is the deepest?"}, {"role": "assistant", "content": "A"}
    rows = [
        {"conversation": [asked, answer], "chosen": [asked, answer], "rejected": [asked, answer | {"content": "B"}]}
    ]
    for source in in_containers(rows, tmp_path):
        assert load_pairs(source)[0]["prompt"] == [asked]


@pytest.mark.parametrize("name", ["System", "system_message", "SYSTEM PROMPT"])
def test_a_system_prompt_under_another_spelling_is_refused_or_named(tmp_path, name):
    meant = "system_prompt" if name == "SYSTEM PROMPT" else "system"
    for source in in_containers([PAIR | {name: "Talk like a sailor."}], tmp_path):
        with pytest.raises(RequestError, match=rf"Set data\.columns: \{{{meant}: {name}\}} to read it as {meant}"):
            load_pairs(source)
        assert load_pairs(source, columns={meant: name})[0]["prompt"][0]["content"] == "Talk like a sailor."
        assert load_pairs(source, columns={meant: None})[0]["prompt"] == PAIR["prompt"]
    assert load_pairs([PAIR | {name: " "}])[0]["prompt"] == PAIR["prompt"]


def test_cells_with_tools_and_settings_as_python_prints_them_are_read(tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": "Add 2 and 2."}],
            "chosen": [{"role": "assistant", "content": "4"}],
            "rejected": [{"role": "assistant", "content": "5"}],
            "tools": [{"name": "add", "strict": True}],
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ]
    want = load_pairs(rows)[0]
    for separator, ending in ((",", "csv"), ("\t", "tsv")):
        for write in (json.dumps, repr):
            path = tmp_path / f"{write.__name__}.{ending}"
            with path.open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file, delimiter=separator)
                table.writerow(rows[0])
                table.writerow([write(value) for value in rows[0].values()])
            assert load_pairs(path)[0] == want
    for nothing in ("null", "None", "[]", " ", {}, []):
        none = load_pairs([PAIR | {"tools": nothing, "chat_template_kwargs": "{}" if nothing == "[]" else nothing}])
        assert none.column_names == ["prompt", "chosen", "rejected", "source_row"]
    with pytest.raises(RequestError, match="chat_template_kwargs is text that looks like"):
        load_pairs([rows[0] | {"chat_template_kwargs": "{'a': object}"}])


@pytest.mark.parametrize(
    "cell",
    [
        "[{'weight': 1, 'role': 'user', 'content': 'x y'}]",
        "({'weight': 1, 'role': 'user', 'content': 'x y'},)",
        json.dumps(json.dumps([{"weight": 1, "role": "user", "content": "x y"}])),
    ],
)
def test_cells_with_messages_whose_first_key_is_another_one_are_read(cell):
    assert read_messages(cell) == [{"weight": 1, "role": "user", "content": "x y"}]


def test_texts_that_quote_messages_stay_texts():
    for cell in (
        '[{"id": 1, "role": "user", "content": "x"}] Explain this.',
        '{"id": 1, "role": "admin", "value": "x"}',
    ):
        assert read_messages(cell) == cell


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-32-be", "utf-16-be"])
def test_files_in_wide_encodings_are_read_whole(encoding, tmp_path):
    path = tmp_path / "pairs.jsonl"
    line = json.dumps({"prompt": "Größe?", "chosen": "é", "rejected": "e"}, ensure_ascii=False)
    path.write_bytes(f"{line}\n{line}\n".encode(encoding))
    assert load_pairs(path)["chosen"][:] == ["é", "é"]


def test_every_key_of_a_sharegpt_turn_is_kept():
    turn = {"from": "gpt", "value": "Baikal", "thought": "The deepest.", "weight": 0, "images": None}
    assert message(turn) == {"role": "assistant", "content": "Baikal", "thought": "The deepest.", "weight": 0}


def test_text_in_the_words_of_the_responses_api_is_text():
    said = message(
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}, {"type": "output_text", "text": "Ho"}]}
    )
    assert said["content"] == [{"type": "text", "text": "Hi"}, {"type": "text", "text": "Ho"}]


def test_a_refusal_beside_no_content_is_the_content():
    assert message({"role": "assistant", "content": None, "refusal": "No."}) == {"role": "assistant", "content": "No."}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.jsonl", '{"prompt": "A", "prompt": "B", "chosen": "C", "rejected": "D"}\n'),
        ("p.json", '[{"prompt": "A", "chosen": "C", "chosen": "B", "rejected": "D"}]'),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=r"an object has the key '(prompt|chosen)' twice"):
        load_pairs(tmp_path / name)
