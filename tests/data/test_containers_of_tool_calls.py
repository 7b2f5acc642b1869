"""The model sees the same of a tool call from every container, and whether arguments are an object or its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from small_tokenizers import BUILDERS
from transformers import PreTrainedTokenizerBase

from wishbone.data.source import load_pairs
from wishbone.data.tokenize import tokenize_pairs

QWEN = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
TOOLS = [  # keys in the order of the alphabet, into which pyarrow 21 sorts those of objects
    {"function": {"description": "Adds.", "name": name, "parameters": {"properties": properties}}, "type": "function"}
    for name, properties in (("add", {"a": {"type": "integer"}}), ("join", {"b": {"type": "string"}}))
]


def row(arguments: Any, tools: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    return {
        "prompt": [{"role": "user", "content": "Go."}],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "tools": tools,
    }


OBJECTS = [row({"a": 2}, TOOLS), row({"b": "x"}, TOOLS)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = BUILDERS["chatml"]()
    tokenizer.chat_template = QWEN.read_text(encoding="utf-8")
    return tokenizer


def _seen(source: Any, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    return [
        (tokenizer.decode(pair["prompt_ids"]), tokenizer.decode(pair["chosen_ids"]))
        for pair in tokenize_pairs(source, tokenizer)
    ]


def test_every_container_shows_the_model_the_plain_row(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = _seen(load_pairs(OBJECTS), tokenizer)
    assert '"arguments": {"a": 2}' in expected[0][1] and '"b": {"type": "string"}' in expected[0][0]
    table = Dataset.from_list(OBJECTS)
    assert None in table[0]["chosen"][0]["tool_calls"][0]["function"]["arguments"].values()
    lines = tmp_path / "pairs.jsonl"
    lines.write_text("".join(json.dumps(found) + "\n" for found in OBJECTS), encoding="utf-8")
    table.to_parquet(str(parquet := tmp_path / "pairs.parquet"))
    for source in (lines, parquet, table, table.to_iterable_dataset()):
        assert _seen(load_pairs(source), tokenizer) == expected, source
    for raw in (table, table.to_iterable_dataset()):
        assert _seen(raw, tokenizer) == expected


def test_arguments_and_tools_as_json_are_those_of_objects(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [row(json.dumps(arguments), json.dumps(TOOLS)) for arguments in ({"a": 2}, {"b": "x"})]
    expected = _seen(load_pairs(OBJECTS), tokenizer)
    assert _seen(load_pairs(texts), tokenizer) == expected == _seen(Dataset.from_list(texts), tokenizer)


def test_an_empty_list_of_tools_is_none(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (QWEN.parent / "llama3_1.jinja").read_text(encoding="utf-8")
    tokenizer.bos_token = "<|im_start|>"
    plain = [{"prompt": [{"role": "user", "content": "Go."}], "chosen": "Yes.", "rejected": "No."}]
    expected = _seen(load_pairs(plain), tokenizer)
    for tools in ([], "[]", None):
        assert _seen(load_pairs([plain[0] | {"tools": tools}]), tokenizer) == expected
    tokenizer.chat_template = QWEN.read_text(encoding="utf-8")
