"""Mistakes of people who write pairs by hand: the message names what to write."""

from __future__ import annotations

import pytest

from wishbone.data.formats.recognize import recognize
from wishbone.data.json_text import NotJsonError, parse_json
from wishbone.errors import RequestError


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ('{"a": 1},', "a comma follows the object"),
        ('{"a": 1} {"b": 2}', "a second object stands on the same line"),
        ("{'a': 1}", "json.dumps writes JSON"),
        ('{"a": None}', "JSON has null, true and false"),
        ('{"a": 1,}', "comma"),
        ('{"a": [1,]}', "comma"),
        ('{"a": "b\nc"}', r"is written \n or \t"),
    ],
)
def test_what_people_take_for_json(text: str, remedy: str) -> None:
    with pytest.raises(NotJsonError) as refused:
        parse_json(text)
    assert remedy in str(refused.value)


@pytest.mark.parametrize(
    ("names", "write"),
    [
        (["prompt", "chosen", "rejectd"], "{rejected: rejectd}"),
        (["Prompt", "Chosen", "Rejected"], "{prompt: Prompt, chosen: Chosen, rejected: Rejected}"),
        (["prompt", " chosen", " rejected"], "{chosen: ' chosen', rejected: ' rejected'}"),
        (["prompts", "choosen", "rejected"], "{prompt: prompts, chosen: choosen}"),
        (["Question", "Good", "Bad"], "{chosen: Good, rejected: Bad}"),
    ],
)
def test_names_of_columns_that_come_close(names: list[str], write: str) -> None:
    with pytest.raises(RequestError, match="not those of a preference pair") as refused:
        recognize(dict.fromkeys(names, "text"))
    assert f"Write data.columns: {write}. " in str(refused.value)


def test_other_columns_are_not_guessed() -> None:
    with pytest.raises(RequestError) as refused:
        recognize({"prompt": "a", "answer": "b", "score": 1.0})
    assert "Write data.columns" not in str(refused.value)
