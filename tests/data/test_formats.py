"""Every layout is recognized by its columns and becomes prompt, chosen, rejected; what does not fit is named."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import assistant, user
from trl import extract_prompt

from wishbone.data.formats import FORMATS, common_prompt, read_pairs, recognize
from wishbone.errors import RequestError


def normalize(row: dict[str, Any], layout: str, **options: Any) -> dict[str, Any]:
    """The only pair of a row."""
    (pair,) = read_pairs(row, layout, **options).pairs
    return pair


SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION, GOOD, BAD = user("What is 2+2?"), assistant("4"), assistant("5")
CHAT = {"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}

EXAMPLES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "text",
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "score": 3},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    ),
    ("messages", {**CHAT, "score_chosen": 9.0, "messages": [QUESTION, GOOD]}, CHAT),
    ("messages", {"prompt": [QUESTION], "chosen": GOOD, "rejected": "5"}, CHAT),
    ("messages", {"prompt": [QUESTION], "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]}, CHAT),
    (
        "messages",
        {"prompt": [{"from": "human", "value": "What is 2+2?"}], "chosen": [GOOD], "rejected": [BAD]},
        CHAT,
    ),
    (
        "prompt_and_conversations",
        {"prompt": "What is 2+2?", "prompt_id": "x", "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        CHAT,
    ),
    ("prompt_and_conversations", {"prompt": "What is 2+2?", "chosen": [GOOD], "rejected": [BAD]}, CHAT),
    (
        "implicit_text",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    ),
    (
        "implicit_messages",
        {"chosen": [SYSTEM, QUESTION, GOOD], "rejected": [SYSTEM, QUESTION, BAD]},
        {**CHAT, "prompt": [SYSTEM, QUESTION]},
    ),
    (
        "transcript",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHow are you?\n\nHuman: What is 2+2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHow are you?\n\nHuman: What is 2+2?\n\nAssistant: 5 ",
        },
        {**CHAT, "prompt": [user("Hi"), assistant("Hello.\n\nHow are you?"), QUESTION]},
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "What is 2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": [{"from": "gpt", "value": "5"}],
            "system": "Be brief.",
        },
        {**CHAT, "prompt": [SYSTEM, QUESTION]},
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "What is 2+2?"},
                {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": 2, "b": 2}})},
                {"from": "observation", "value": "4"},
            ],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
            "system": "",
            "tools": '[{"name": "add"}]',
        },
        {
            **CHAT,
            "prompt": [
                SYSTEM,
                QUESTION,
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "4"},
            ],
            "tools": '[{"name": "add"}]',
        },
    ),
    (
        "instruction",
        {
            "instruction": "Add.",
            "input": "2+2",
            "chosen": "4",
            "rejected": "5",
            "system": "Be brief.",
            "history": [["Hi", "Hello."]],
        },
        {**CHAT, "prompt": [SYSTEM, user("Hi"), assistant("Hello."), user("Add.\n2+2")]},
    ),
    ("instruction", {"question": "What is 2+2?", "system": "", "chosen": "4", "rejected": "5"}, CHAT),
    ("instruction", {"instruction": "What is 2+2?", "input": None, "chosen": "4", "rejected": "5"}, CHAT),
    (
        "openai",
        {
            "input": {
                "messages": [{"role": "developer", "content": "Be brief."}, QUESTION],
                "tools": [],
                "parallel_tool_calls": True,
            },
            "preferred_output": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}],
                }
            ],
            "non_preferred_output": [BAD],
        },
        {
            "prompt": [SYSTEM, QUESTION],
            "chosen": [{"role": "assistant", "tool_calls": [CALL]}],
            "rejected": [BAD],
        },
    ),
]


@pytest.mark.parametrize(("layout", "row", "expected"), EXAMPLES, ids=[f"{e[0]}-{i}" for i, e in enumerate(EXAMPLES)])
def test_a_layout_is_recognized_and_normalized(layout: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    before = json.dumps(row)
    assert recognize(row).layout == layout
    assert normalize(row, layout) == expected
    assert json.dumps(row) == before  # the row of the caller is left alone


SPIDER = {"prompt": "How many legs?", "chosen": "Eight.", "rejected": "Six."}
ASKED = [user("How many legs?")]
EARLIER = [user("Hi"), assistant("Hello.")]
ANSWERS = {"chosen": [assistant("Eight.")], "rejected": [assistant("Six.")]}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({**SPIDER, "system": "Be brief."}, [SYSTEM, *ASKED]),
        ({**SPIDER, "system": None}, ASKED),
        ({**SPIDER, "system_prompt": "Be brief.", "history": [["Hi", "Hello."]]}, [SYSTEM, *EARLIER, *ASKED]),
        ({**SPIDER, "history": EARLIER}, [*EARLIER, *ASKED]),
        ({**SPIDER, "input": "Of a spider."}, [user("How many legs?\nOf a spider.")]),
        ({**SPIDER, **ANSWERS, "prompt": ASKED, "system": "Be brief."}, [SYSTEM, *ASKED]),
        ({**SPIDER, **ANSWERS, "prompt": [SYSTEM, *ASKED], "system": " Be brief."}, [SYSTEM, *ASKED]),
        ({**SPIDER, **ANSWERS, "prompt": ASKED, "history": [["Hi", "Hello."]]}, [*EARLIER, *ASKED]),
        ({"messages": ASKED, "chosen": "Eight.", "rejected": "Six.", "system": "Be brief."}, [SYSTEM, *ASKED]),
        ({"messages": [*ASKED, *ANSWERS["chosen"]], "chosen": "Eight.", "rejected": "Six."}, ASKED),
        ({"context": "How many legs?", "chosen": "Eight.", "rejected": "Six."}, ASKED),
        ({"system": "Be brief.", **{side: [*ASKED, *ANSWERS[side]] for side in ANSWERS}}, [SYSTEM, *ASKED]),
        ({"messages": [*ASKED, *ANSWERS["chosen"]], **{side: [*ASKED, *ANSWERS[side]] for side in ANSWERS}}, ASKED),
        ({"instruction": "How many legs?", **{side: [*ASKED, *ANSWERS[side]] for side in ANSWERS}}, ASKED),
    ],
)  # fmt: skip
def test_what_stands_in_other_columns_reaches_the_prompt(row: dict[str, Any], prompt: list[Any]) -> None:
    pair = normalize(row, recognize(row).layout)
    assert pair == {"prompt": prompt, **ANSWERS}


@pytest.mark.parametrize(
    "row",
    [
        {**SPIDER, "images": ["cat.png"]},
        {**SPIDER, "instruction": "Answer in French."},
        {**SPIDER, "context": "Spiders are no insects."},
        {**SPIDER, "messages": [user("Hi"), assistant("Hello.")]},
        {**SPIDER, "history": "We spoke of spiders."},
        {**SPIDER, **ANSWERS, "prompt": [SYSTEM, *ASKED], "system": "Be long."},
        {**SPIDER, **ANSWERS, "prompt": ASKED, "input": "Of a spider."},
        {**SPIDER, **ANSWERS, "prompt": [user("Hi"), assistant("Hello."), *ASKED], "history": [["Ho", "Hm."]]},
        {"prompt": "Answer in French.", **{side: [*ASKED, *ANSWERS[side]] for side in ANSWERS}},
        {"system": "Be brief.", "chosen": "It has eight legs.", "rejected": "It has six legs."},
        {"tools": [{"name": "f"}], "chosen": "It has eight legs.", "rejected": "It has six legs."},
        {"question": "How many?", "context": "Spiders.", "chosen": "Eight.", "rejected": "Six."},
    ],
)
def test_what_has_no_plain_place_is_refused(row: dict[str, Any]) -> None:
    name = next(name for name in reversed(row) if name not in ("chosen", "rejected"))
    name = {"question": "context", "rejected": "prompt"}.get(name, name)
    with pytest.raises(RequestError, match=f"^{name} "):
        read_pairs(row, recognize(row).layout)


def test_what_a_template_may_want_is_kept() -> None:
    said = {"role": "assistant", "content": [{"type": "text", "text": "4"}], "reasoning_content": "2+2", "name": None}
    row = {**CHAT, "chosen": [said], "chat_template_kwargs": {"enable_thinking": False}, "tools": ""}
    pair = normalize(row, recognize(row).layout)
    assert pair["chosen"] == [{key: value for key, value in said.items() if key != "name"}]
    assert pair["chat_template_kwargs"] == {"enable_thinking": False}
    assert "tools" not in pair


@given(st.text("ab c", min_size=1, max_size=8), st.text("ab c", min_size=1, max_size=8))
def test_the_common_prompt_of_texts_is_that_of_trl(chosen: str, rejected: str) -> None:
    prompt, *completions = common_prompt(chosen, rejected)
    assert [prompt + completion for completion in completions] == [chosen, rejected]
    if chosen[0] == rejected[0]:
        expected = extract_prompt({"chosen": chosen, "rejected": rejected})
        assert (prompt, *completions) == (expected["prompt"], expected["chosen"], expected["rejected"])
    elif min(len(chosen), len(rejected)) > 1:
        assert prompt == ""


@given(st.lists(st.integers(0, 1), min_size=1, max_size=6), st.lists(st.integers(0, 1), min_size=1, max_size=6))
def test_the_common_prompt_of_conversations_is_that_of_trl(chosen: list[int], rejected: list[int]) -> None:
    turns = [[user(str(turn)) for turn in side] for side in (chosen, rejected)]
    expected = extract_prompt({"chosen": turns[0], "rejected": turns[1]})
    assert common_prompt(*turns) == (expected["prompt"], expected["chosen"], expected["rejected"])


def test_a_system_prompt_is_put_where_there_is_none() -> None:
    assert normalize(CHAT, "messages", system_prompt="Be brief.")["prompt"] == [SYSTEM, QUESTION]
    row = {**CHAT, "prompt": [{"role": "system", "content": "Own."}, QUESTION]}
    assert normalize(row, "messages", system_prompt="Be brief.")["prompt"][0]["content"] == "Own."
    with pytest.raises(RequestError, match=r"data\.system_prompt cannot be added"):
        normalize({"prompt": "a", "chosen": "b", "rejected": "c"}, "text", system_prompt="Be brief.")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"chosen": None}, "chosen is empty (null); it must be a list of messages"),
        ({"chosen": 3}, "chosen is a number"),
        ({"chosen": []}, "chosen has no messages"),
        ({"prompt": []}, "prompt has no messages"),
        ({"prompt": [{"role": "narrator", "content": "x"}]}, "prompt message 1 has the unknown role 'narrator'"),
        ({"prompt": [{"content": "x"}]}, "prompt message 1 has no role"),
        ({"prompt": [QUESTION, {"role": "user", "content": None}]}, "prompt message 2 (user) has no content"),
        ({"prompt": [{"role": "user", "content": 4}]}, "prompt message 1 has content that is a number"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "prompt holds images, and only a model that reads images",
        ),
        ({"prompt": ["x"]}, "prompt message 1 is text; it must be an object"),
        ({"chosen": [QUESTION]}, "chosen begins with a user message"),
        ({"rejected": [BAD, QUESTION]}, "rejected does not end with an assistant message"),
        ({"chosen": [assistant("\ud83d")]}, "half of a surrogate pair at character 0"),
        ({"tools": "add"}, "tools must be a list of tools"),
        ({"tools": "{"}, "tools is text that looks like a list or an object"),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs is a number"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], problem: str) -> None:
    row = {**CHAT, **change}
    with pytest.raises(RequestError) as refused:
        normalize(row, "messages")
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("layout", "row", "problem"),
    [
        ("text", {"prompt": "a", "chosen": "b"}, "rejected is missing"),
        ("text", {"prompt": True, "chosen": "b", "rejected": "c"}, "prompt is a truth value; it must be text"),
        ("implicit_text", {"chosen": "a", "rejected": ""}, "rejected is empty, so it contains no prompt"),
        ("implicit_messages", {"chosen": [GOOD], "rejected": [BAD]}, "begin with different messages"),
        ("transcript", {"chosen": "Hi", "rejected": "\n\nHuman: Hi\n\nAssistant: 5"}, "chosen is not a transcript"),
        ("sharegpt", {"conversations": [{"from": "human"}], "chosen": "4", "rejected": "5"}, "(human) has no value"),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": "add"}], "chosen": "4", "rejected": "5"},
            "is not the JSON of {name, arguments}",
        ),
        ("instruction", {"instruction": None, "chosen": "4", "rejected": "5"}, "instruction is empty (null)"),
        (
            "instruction",
            {"instruction": "a", "chosen": "4", "rejected": "5", "history": ["a"]},
            "history must be a list of [question, answer]",
        ),
        ("openai", {"input": None, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "input is empty (null)"),
        (
            "openai",
            {"input": {}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
            "input.messages is missing",
        ),
    ],
)
def test_what_does_not_fit_is_named_in_every_layout(layout: str, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError) as refused:
        normalize(row, layout)
    assert problem in str(refused.value)


def test_all_problems_of_a_row_come_at_once() -> None:
    with pytest.raises(RequestError) as refused:
        normalize({"prompt": None, "chosen": 1, "rejected": [[]]}, "messages")
    assert [problem.split()[0] for problem in refused.value.problems] == ["prompt", "chosen", "rejected"]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"text": "a"},
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "chosen": "b", "rejected": ["c"]},
        {"prompt": 1, "chosen": "a", "rejected": "b"},
        {"chosen": None, "rejected": None},
    ],
)
def test_an_unknown_layout_is_refused_with_what_was_found_and_what_is_accepted(row: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        recognize(row)
    assert all(name in str(refused.value) for name in row)
    assert all(description in str(refused.value) for description in FORMATS.values())


def test_formats_need_neither_torch_nor_datasets() -> None:
    check = "import sys, wishbone.data.formats; sys.exit(bool({'torch', 'datasets', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "Rows with one answer are for supervised fine-tuning"),
        ({"messages": [QUESTION, GOOD]}, "Rows with one answer are for supervised fine-tuning"),
        ({"prompt": "a", "completion": "b", "label": True}, "Rows with one answer and a label are for KTO"),
        ({"prompt": "a", "accepted": "b", "refused": "c"}, "data.columns: {chosen: accepted, rejected: refused}"),
        ({"a": "b"}, "a (text). Name them in data.columns"),
    ],
)
def test_rows_that_are_no_pairs_are_told_what_they_are(row: dict[str, Any], said: str):
    with pytest.raises(RequestError) as refusal:
        recognize(row)
    assert said in str(refusal.value)
