"""Which pairs are held out depends on the seed and their number alone, and is the choice that `datasets` makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from tiny import tiny_tokenizer

from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError
from wishbone.run.prepare_data import prepare_data, split_rows


@pytest.mark.parametrize(("rows", "heldout", "seed"), [(2, 1, 0), (37, 5, 42), (1000, 999, 7), (1000, 50, 2**32 - 1)])
def test_the_rows_are_those_of_train_test_split(rows: int, heldout: int, seed: int) -> None:
    parts = Dataset.from_dict({"row": list(range(rows))}).train_test_split(test_size=heldout, seed=seed)
    train, held = split_rows(rows, heldout, seed)
    assert (train.tolist(), held.tolist()) == (parts["train"]["row"][:], parts["test"]["row"][:])


def test_all_pairs_of_a_ranked_row_are_on_one_side(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"{row}?", "generations": [f"{row}a", f"{row}b", f"{row}c"], "ratings": [3, 2, 1]}
        for row in range(20)
    ]
    data = {"train": str(tmp_path / "p.jsonl"), "pairs": "all", "eval_fraction": 0.3}
    config = RunConfig.model_validate({"model": {"name": "x"}, "data": data})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, heldout, dropped = prepare_data(config, tiny_tokenizer())
    assert heldout is not None
    assert (len(train), len(heldout), dropped) == (14 * 3, 6 * 3, 0)
    assert set(train["source_row"][:]).isdisjoint(heldout["source_row"][:])
    (tmp_path / "p.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(RequestError, match="of 1 row leaves nothing to train on"):
        prepare_data(config, tiny_tokenizer())


def test_held_out_pairs_that_are_trained_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"{n}?", "chosen": f"{n}", "rejected": "no"} for n in (1, 2, 3, 3, 4, 4, 4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (rows[0], {**rows[1], "chosen": "x"})))
    data = {"train": str(tmp_path / "p.jsonl"), "eval": str(tmp_path / "e.jsonl")}
    with caplog.at_level("WARNING", logger="wishbone"):
        prepare_data(RunConfig.model_validate({"model": {"name": "x"}, "data": data}), tiny_tokenizer())
    assert "1 of 2 held-out pairs is trained, too" in caplog.text
    caplog.clear()
    split = {"train": data["train"], "eval_fraction": 0.5}
    _, heldout, _ = prepare_data(RunConfig.model_validate({"model": {"name": "x"}, "data": split}), tiny_tokenizer())
    assert heldout is not None
    assert f"of {len(heldout)} held-out pairs" in caplog.text
    caplog.clear()
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [rows[1], rows[2], rows[4]]))
    prepare_data(RunConfig.model_validate({"model": {"name": "x"}, "data": split}), tiny_tokenizer())
    assert "held-out" not in caplog.text


def test_a_run_is_told_what_is_cut_repeated_and_contradicted(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "chosen": "yes " * n, "rejected": "no"} for n in (1, 2, 2, 90)]
    rows.append({"prompt": "1?", "chosen": "no", "rejected": "yes "})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "p.jsonl"), "eval": str(tmp_path / "p.jsonl"), "max_length": 64}
    told: list[str] = []
    config = RunConfig.model_validate({"model": {"name": "x"}, "data": data})
    prepare_data(config, tiny_tokenizer(), tell=told.append)
    for part in ("1 of 5 rows is longer than max_length; truncation cuts", "1 pair occurred before", "contradicts"):
        assert sum(part in sentence for sentence in told) == 1, part
