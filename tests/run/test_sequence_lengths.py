"""Pairs longer than the model's positions or the memory are told of before weights are loaded."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from datasets import Dataset

from wishbone.config import parse_config
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError
from wishbone.planning.room import Machine
from wishbone.run.sequence_lengths import check_lengths, this_cpu

GIB = 2**30
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def config(max_length: int | None) -> RunConfig:
    return parse_config(json.dumps({"model": {"name": "m"}, "data": {"train": "t", "max_length": max_length}}))


def pairs(*completions: int) -> Dataset:
    rows = [{"prompt_ids": [5] * 10, "chosen_ids": [6] * count, "rejected_ids": [7] * 20} for count in completions]
    return Dataset.from_list(rows)


def refusal(*arguments: Any) -> str:
    with pytest.raises(RequestError) as error:
        check_lengths(*arguments)
    return str(error.value)


def test_pairs_beyond_the_positions_are_refused_without_a_max_length_and_cut_or_trained_with_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = pairs(100, 41_000, 9_000)
    said = refusal(config(None), LLAMA, data, None)
    assert "2 of 3 pairs are longer than the 8,192 positions of the model (the longest has 41,010 tokens)" in said
    assert "data.max_length=8192" in said
    check_lengths(config(8192), LLAMA, data, None)
    check_lengths(config(None), LLAMA, pairs(100, 8182), None)
    assert not caplog.records
    check_lengths(config(20_000), LLAMA, data, None)
    assert "2 of 3 pairs are longer than the 8,192 positions" in caplog.text
    assert "data.max_length is 20000" in caplog.text


def test_a_max_length_beyond_the_positions_is_said_even_when_no_pair_is_that_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        check_lengths(config(10_000), LLAMA, pairs(100), None)
    assert "data.max_length 10000 is more than the 8192 positions of the model" in caplog.text


def test_a_table_of_positions_has_no_rows_beyond_its_end() -> None:
    gpt2 = {"model_type": "gpt2", "n_positions": 1024}
    said = refusal(config(2000), gpt2, pairs(1500), None)
    assert "1 of 1 pair is longer than the 1,024 positions" in said
    assert "set data.max_length=1024" in said
    check_lengths(config(1024), gpt2, pairs(1500), None)


def test_the_language_model_of_one_with_images_has_the_positions() -> None:
    refusal(config(None), {"model_type": "both", "text_config": LLAMA}, pairs(9000), None)


def test_a_model_that_says_nothing_of_positions_takes_any() -> None:
    check_lengths(config(None), {"model_type": "rwkv"}, pairs(90_000), this_cpu())


def test_a_pair_that_does_not_fit_the_memory_is_planned_and_refused() -> None:
    """50,000 tokens in a model that takes 131,072 needed 14 GiB; it has to be cut, or the machine to be larger."""
    longer = LLAMA | {"max_position_embeddings": 131_072}
    data = pairs(100, 50_000)
    said = refusal(config(None), longer, data, Machine("cpu", 8 * GIB, 6 * GIB))
    assert "the longest pair has 50,030 tokens in its row" in said
    assert "6.0 GiB are free" in said
    advised = int(said.partition("set data.max_length=")[2].split()[0])
    assert 1000 < advised < 50_000
    check_lengths(config(advised), longer, data, Machine("cpu", 8 * GIB, 6 * GIB))
    check_lengths(config(None), longer, data, Machine("cpu", 64 * GIB, 60 * GIB))
    check_lengths(config(None), longer, data, None)
