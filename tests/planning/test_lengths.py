"""Tokens of pairs: the tokenizer's, as training counts them; without one an estimate that says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_tokenizer

from wishbone.config.schema import DataConfig
from wishbone.data.inspect import inspect_pairs
from wishbone.data.source import load_pairs
from wishbone.data.tokenize import tokenize_pairs
from wishbone.engine.row_lengths import pair_tokens
from wishbone.errors import RequestError
from wishbone.planning.lengths import PairLengths, estimated_pairs, given_lengths, measured_lengths

ROWS = [
    {"prompt": "What is green? " * n, "chosen": "Grass is. " * (n + 1), "rejected": "Nothing at all is, ever. " * n}
    for n in range(1, 30)
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


@pytest.mark.parametrize("max_length", [None, 40, 1024])
def test_tokens_are_those_that_training_counts(tmp_path: Path, pairs: Path, max_length: int | None):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    data = DataConfig(train=str(pairs), max_length=max_length, truncation="keep_end")
    found = measured_lengths(data, tmp_path / "model")
    tokenized = tokenize_pairs(load_pairs(str(pairs), turns=True), tokenizer)
    inspection = inspect_pairs(tokenized, max_length=None, truncation="keep_end")
    assert len(found) == inspection.rows
    assert found.source == "by the model's tokenizer"
    assert int(found.rows(None).sum()) == inspection.shared_tokens
    assert found.rows(max_length).tolist() == pair_tokens(tokenized, max_length).tolist()


def test_texts_are_counted_in_the_form_in_which_they_are_trained(tmp_path: Path, pairs: Path):
    for chat, template, turns in ((True, "auto", True), (True, "none", False), (False, "auto", False)):
        tokenizer = tiny_tokenizer(chat)
        tokenizer.save_pretrained(tmp_path / f"{chat}-{template}")
        data = DataConfig(train=str(pairs), template=template, max_length=None)
        found = measured_lengths(data, tmp_path / f"{chat}-{template}")
        tokenized = tokenize_pairs(load_pairs(str(pairs), turns=turns), tokenizer)
        assert found.prompt.tolist() == [len(ids) for ids in tokenized["prompt_ids"]]


def test_without_a_tokenizer_characters_are_counted(pairs: Path):
    raw, turns = (measured_lengths(DataConfig(train=str(pairs), template=form), None) for form in ("none", "auto"))
    assert "estimated" in raw.source
    assert raw.prompt.tolist() == [-(-len(row["prompt"]) // 4) for row in ROWS]
    assert turns.prompt.tolist() == [count + 4 for count in raw.prompt.tolist()]


def test_without_a_tokenizer_other_scripts_and_tools_count_more():
    """SmolLM2 cuts the three texts into 60, 37 and 63 tokens; by four characters they were 8, 12 and 8."""
    texts = (
        "それはとても興味深い質問ですね。まず山の歴史から始めましょう。",
        "Это очень интересный вопрос; начнём издалека.",
        "정말 멋진 질문이에요! 먼저 하늘의 역사를 살펴봅시다.",
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome, in the south of Italy"}'}}
    tool = {"type": "function", "function": {"name": "weather", "description": "w" * 400}}
    found = estimated_pairs([{"prompt": "p" * 8, "chosen": text, "rejected": "r"} for text in texts])
    assert found.chosen.tolist() == [31, 40, 24]
    asked, answer = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": None, "tool_calls": [call]}
    one = estimated_pairs([{"prompt": [asked], "chosen": [answer], "rejected": [asked], "tools": [tool]}])
    assert one.chosen[0] > len(json.dumps(call)) / 4 and one.prompt[0] > 100


def test_conversations_without_a_prompt_share_what_they_begin_with(tmp_path: Path):
    question = {"role": "user", "content": "x" * 40}
    row = {
        side: [question, {"role": "assistant", "content": text}]
        for side, text in (("chosen", "y" * 8), ("rejected", "z" * 80))
    }
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([row]), encoding="utf-8")
    found = measured_lengths(DataConfig(train=str(path)), None)
    assert [found.prompt.tolist(), found.chosen.tolist(), found.rejected.tolist()] == [[14], [6], [24]]


def test_pairs_that_cannot_teach_are_left_out(pairs: Path):
    limit = 60
    found = measured_lengths(DataConfig(train=str(pairs), max_length=limit), None)
    assert 0 < len(found) < len(ROWS)
    assert found.prompt.max() < limit
    with pytest.raises(RequestError, match=r"holds no pair that fits into data\.max_length 3"):
        measured_lengths(DataConfig(train=str(pairs), max_length=3), None)


def test_rows_scored_tokens_and_contexts_of_one_pair():
    pair = PairLengths(np.array([3]), np.array([2]), np.array([4]), "as given")
    assert (pair.rows(None).tolist(), pair.scored(None).tolist()) == ([9], [6])
    assert (pair.rows(6).tolist(), pair.scored(6).tolist()) == ([8], [5])
    assert pair.contexts(None).tolist() == [(25 + 49 - 9) / 2]


def test_given_lengths_hold_the_longest_pair():
    found = given_lengths(100, 100, 300, 2000)
    assert len(found) == 100
    assert (found.prompt[0], found.chosen[0], found.prompt[1], found.chosen[1]) == (500, 1500, 100, 300)
