"""Rows that cannot teach are found and named; lengths and counts agree with plain Python."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import BUILDERS, assistant, dataset, user

from wishbone.data.batch import SharedPrefixBatch, truncated_pair
from wishbone.data.inspect import (
    EMPTY,
    IDENTICAL,
    IDENTICAL_CUT,
    PROMPT_TOO_LONG,
    Truncation,
    inspect_pairs,
    refuse_or_drop,
)
from wishbone.data.source import load_pairs
from wishbone.data.tokenize import tokenize_pairs
from wishbone.errors import RequestError

Row = tuple[list[int], list[int], list[int]]


def tokens(*rows: Row, **columns: Any) -> Dataset:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    ids = Features({name: List(Value("int32")) for name in names})
    table = Dataset.from_dict({name: [row[i] for row in rows] for i, name in enumerate(names)}, features=ids)
    for name, values in columns.items():
        table = table.add_column(name, values)
    return table


GOOD: Row = ([1, 2], [3, 4], [5])


def test_each_reason_is_found_and_named_by_source_row() -> None:
    rows = tokens(
        GOOD,
        ([1], [], [2]),
        ([1], [2], []),
        ([1], [2, 3], [2, 3]),
        ([1, 2, 3, 4], [5], [6]),
        ([1, 2], [3, 4, 5], [3, 4, 6]),
        GOOD,
        source_row=[10, 20, 30, 40, 50, 60, 70],
    )
    found = inspect_pairs(rows, max_length=4, truncation="keep_start")
    assert found.problems == {EMPTY: (20, 30), IDENTICAL: (40,), PROMPT_TOO_LONG: (50,), IDENTICAL_CUT: (60,)}
    assert found.invalid == (1, 2, 3, 4, 5)
    assert found.rows == 7
    untruncated = inspect_pairs(rows, max_length=None, truncation="keep_start")
    assert untruncated.problems == {EMPTY: (20, 30), IDENTICAL: (40,)}
    assert untruncated.truncated_rows == untruncated.truncated_tokens == 0


def test_a_shuffled_data_set_is_read_some_rows_at_a_time(tmp_path: Path) -> None:
    """A column that is read at once would be a copy of all rows, and a data set may be larger than memory."""
    generator = np.random.default_rng(0)
    rows = [tuple(generator.integers(0, 99, 200).tolist() for _ in range(3)) for _ in range(5000)]
    tokens(*rows).save_to_disk(tmp_path / "rows")
    stored = load_from_disk(tmp_path / "rows")
    shuffled = stored.select(generator.permutation(len(stored)))
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    earlier = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        found = inspect_pairs(shuffled, max_length=500, truncation="keep_start")
    finally:
        pa.set_memory_pool(earlier)
    assert found.truncated_rows == 0 and found.lengths["pair"].max == 600
    size = 3 * 4 * 200 * 5000
    assert pool.max_memory() < size / 2


def test_keep_end_loses_the_prompt_first() -> None:
    rows = tokens(([1, 2, 3, 4], [5], [6]), ([1, 2], [3, 4, 5, 6], [9, 4, 5, 6]), ([1], [9, 4, 5, 6], [4, 5, 6]))
    assert inspect_pairs(rows, max_length=4, truncation="keep_end").problems == {}
    assert inspect_pairs(rows, max_length=3, truncation="keep_end").problems == {IDENTICAL_CUT: (2, 3)}


ids = st.lists(st.integers(1, 2), max_size=4)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=12),
    max_length=st.none() | st.integers(2, 7),
    truncation=st.sampled_from(["keep_start", "keep_end"]),
    joined=st.booleans(),
)
def test_every_number_agrees_with_the_batch_that_is_trained(
    rows: list[Row], max_length: int | None, truncation: Truncation, joined: bool
) -> None:
    table = tokens(*rows)
    if joined:  # several Arrow chunks, in another order
        table = concatenate_datasets([table, table]).select(range(len(rows), 2 * len(rows)))
    found = inspect_pairs(table, max_length=max_length, truncation=truncation)
    trained = [truncated_pair(*row, max_length=max_length, keep_end=truncation == "keep_end") for row in rows]
    cannot_teach = [
        len(pair.chosen) <= max(pair.chosen_start, 1)
        or len(pair.rejected) <= max(pair.rejected_start, 1)
        or (pair.chosen == pair.rejected and pair.chosen_start == pair.rejected_start)
        for pair in trained
    ]
    assert found.invalid == tuple(np.flatnonzero(cannot_teach))
    assert sorted(n for numbers in found.problems.values() for n in numbers) == [i + 1 for i in found.invalid]
    left = sum(len(pair.chosen) + len(pair.rejected) for pair in trained)
    assert found.separate_tokens == left
    assert found.truncated_tokens == sum(2 * len(p) + len(c) + len(r) for p, c, r in rows) - left
    assert found.truncated_rows == sum(
        max_length is not None and len(p) + max(len(c), len(r)) > max_length for p, c, r in rows
    )
    assert found.shared_tokens >= sum(pair.row_tokens for pair in trained)
    assert found.chosen_longer == np.mean([len(c) > len(r) for _, c, r in rows])
    for i, name in enumerate(("prompt", "chosen", "rejected")):
        counts = sorted(len(row[i]) for row in rows)
        assert found.lengths[name].max == counts[-1]
        assert found.lengths[name].p50 == counts[(len(counts) - 1) // 2]
    assert found.lengths["pair"].max == max(sum(map(len, row)) for row in rows)


def test_shared_tokens_are_those_of_the_shared_prefix_row() -> None:
    rows = [([1, 2, 3], [4, 5], [6]), ([1, 2], [7], [8, 9, 1, 1])]
    found = inspect_pairs(tokens(*rows), max_length=5, truncation="keep_start")
    batch = SharedPrefixBatch.from_pairs([truncated_pair(*row, max_length=5) for row in rows])
    assert found.shared_tokens == batch.input_ids.numel() == 3 + 2 + 1 + 2 + 1 + 3
    assert found.separate_tokens == 5 + 4 + 3 + 5


def test_repeated_and_contradicting_pairs_are_warned_of() -> None:
    swapped = (GOOD[0], GOOD[2], GOOD[1])
    same = ([1], [2], [2])
    rows = tokens(GOOD, ([1], [3, 4], [5]), GOOD, swapped, swapped, same, same)
    found = inspect_pairs(rows, max_length=None, truncation="keep_start")
    assert found.duplicates == (3, 5, 7)
    assert found.conflicts == ((1, 4),)
    warnings = " ".join(found.warnings)
    assert "3 pairs occurred before (rows 3, 5, 7)" in warnings
    assert "1 pair contradicts another pair, which prefers the other completion (rows 1 and 4)" in warnings


def test_truncation_length_bias_and_cut_prompts_are_warned_of() -> None:
    rows = tokens(*[([1], [2, 3, 4, 5], [i]) for i in range(6, 10)], prompt_cut=[0, 2, 0, 1])
    found = inspect_pairs(rows, max_length=4, truncation="keep_start")
    truncated, longer, cut = found.warnings
    assert "4 of 4 rows are longer than max_length; truncation cuts 4 tokens (14.3%)" in truncated
    assert "in 100% of the pairs the chosen completion is the longer one" in longer
    assert "in 2 rows the end of the prompt" in cut
    assert inspect_pairs(tokens(GOOD, ([1], [2], [3, 4])), max_length=9, truncation="keep_start").warnings == ()


@pytest.mark.parametrize("shape", ["text", "messages", "blocks"])
def test_a_completion_of_white_space_is_empty(shape: str) -> None:
    def completion(text: str) -> Any:
        blocks = [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
        return {"text": text, "messages": [assistant(text)], "blocks": blocks}[shape]

    texts = [("a", "b"), (" \n\u00a0", "b"), ("a", ""), ("b", "a")]
    prompt: Any = "q" if shape == "text" else [user("q")]
    pairs = load_pairs([{"prompt": prompt, "chosen": completion(c), "rejected": completion(r)} for c, r in texts])
    tokenized = tokenize_pairs(pairs, BUILDERS["chatml"]())
    assert inspect_pairs(tokenized, max_length=None, truncation="keep_start").problems == {EMPTY: (2, 3)}
    moved = inspect_pairs(tokenized.select([3, 2, 0]), max_length=None, truncation="keep_start")
    assert (moved.problems, moved.invalid) == ({EMPTY: (3,)}, (1,))


def test_a_completion_that_calls_a_tool_is_not_empty() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    rows = load_pairs([{"prompt": [user("q")], "chosen": [call], "rejected": [assistant("b")]}])
    tokenized = tokenize_pairs(rows, BUILDERS["chatml"]())
    assert inspect_pairs(tokenized, max_length=None, truncation="keep_start").problems == {}


def test_refusing_names_every_reason_and_ten_rows_of_each() -> None:
    rows = tokens(*[([1], [2], [2])] * 13, ([1] * 9, [2], [3]), GOOD)
    found = inspect_pairs(rows, max_length=9, truncation="keep_start")
    with pytest.raises(RequestError) as refused:
        refuse_or_drop(rows, found, "refuse")
    identical, too_long = refused.value.problems
    assert (
        "13 of 15 rows: chosen and rejected are the same (rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 3 more)" in identical
    )
    assert "1 of 15 rows: the prompt alone fills max_length (row 14)" in too_long
    assert "keep_end" in too_long
    assert all("data.invalid_rows: drop" in problem for problem in refused.value.problems)


def test_dropping_leaves_the_others_in_order(caplog: pytest.LogCaptureFixture) -> None:
    rows = tokens(GOOD, ([1], [2], [2]), GOOD, source_row=[5, 6, 7])
    found = inspect_pairs(rows, max_length=9, truncation="keep_start")
    with caplog.at_level(logging.WARNING, "wishbone"):
        kept = refuse_or_drop(rows, found, "drop")
    assert list(kept["source_row"]) == [5, 7]
    assert "1 of 3 rows is dropped: chosen and rejected are the same (row 6)" in caplog.text
    only_good = tokens(GOOD)
    found = inspect_pairs(only_good, max_length=9, truncation="keep_start")
    assert refuse_or_drop(only_good, found, "refuse") is only_good


def test_dropping_everything_is_refused() -> None:
    rows = tokens(([1], [2], [2]))
    with pytest.raises(RequestError, match=r"every row would be dropped.*row 1"):
        refuse_or_drop(rows, inspect_pairs(rows, max_length=None, truncation="keep_start"), "drop")


def test_a_stream_is_not_inspected() -> None:
    stream = tokens(GOOD).to_iterable_dataset()
    for nothing in (stream, tokens(GOOD).select([])):
        with pytest.raises(RequestError, match="a stream"):
            inspect_pairs(nothing, max_length=None, truncation="keep_start")


def test_from_file_to_inspection(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"prompt": "q", "chosen": "a", "rejected": "b"}\n\n{"prompt": "q", "chosen": "a", "rejected": "a"}\n'
    )
    tokenized = tokenize_pairs(load_pairs(path), BUILDERS["chatml"]())
    found = inspect_pairs(tokenized, max_length=64, truncation="keep_start")
    assert found.problems == {IDENTICAL: (3,)}
    assert dataset(*refuse_or_drop(tokenized, found, "drop"))["source_row"][0] == 1
