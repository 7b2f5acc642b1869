"""Which pairs are held out depends on the seed and their number alone, and is the choice that `datasets` makes."""

from __future__ import annotations

import pytest
from datasets import Dataset

from wishbone.run.prepare_data import split_rows


@pytest.mark.parametrize(("rows", "heldout", "seed"), [(2, 1, 0), (37, 5, 42), (1000, 999, 7), (1000, 50, 2**32 - 1)])
def test_the_rows_are_those_of_train_test_split(rows: int, heldout: int, seed: int) -> None:
    parts = Dataset.from_dict({"row": list(range(rows))}).train_test_split(test_size=heldout, seed=seed)
    train, held = split_rows(rows, heldout, seed)
    assert (train.tolist(), held.tolist()) == (parts["train"]["row"][:], parts["test"]["row"][:])
