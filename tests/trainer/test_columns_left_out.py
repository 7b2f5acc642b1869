"""The drop-in trainer reads the columns that TRL reads; what others say of the prompt is told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny import tiny_tokenizer

from trainer.preference_runs import arguments
from wishbone import DPOConfig
from wishbone.data.source import load_pairs
from wishbone.trainer.dataset import prepare_pairs

ASKED = [{"role": "user", "content": "Which lake?"}]
CHAT = {
    "prompt": ASKED,
    "chosen": [{"role": "assistant", "content": "Baikal."}],
    "rejected": [{"role": "assistant", "content": "Como."}],
}
TEXT = {"prompt": "Which lake?", "chosen": "Baikal.", "rejected": "Como."}
WHOLE = {side: [*ASKED, *CHAT[side]] for side in ("chosen", "rejected")}


@pytest.mark.parametrize(
    ("row", "left"),
    [
        (CHAT | {"system": "Talk like a sailor."}, "system"),
        (TEXT | {"history": [["Hi", "Hello."]], "input": "Of Asia."}, "history, input"),
        (WHOLE | {"instruction": "Answer briefly."}, "instruction"),
        (CHAT | {"System_Message": "Talk like a sailor."}, "System_Message"),
        (CHAT | {"documents": [{"text": "Baikal is deep."}], "functions": ["look_up"]}, "documents, functions"),
        (WHOLE | {"messages": WHOLE["chosen"], "question": "Which lake?"}, ""),
        (CHAT | {"system": None, "history": [], "source": "A text of its own."}, ""),
    ],
)
def test_what_is_not_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any], left: str
) -> None:
    dataset = Dataset.from_list([row, row])
    args = DPOConfig(**arguments(tmp_path))
    prepare_pairs(dataset, tiny_tokenizer(), args, "train")
    told = [record.getMessage() for record in caplog.records if "is not read, as in TRL" in record.getMessage()]
    assert [f"what the columns {left} say is not in the prompt" in line for line in told] == [True] * bool(left)
    caplog.clear()
    if left not in ("instruction", "System_Message"):  # load_pairs refuses these
        prepare_pairs(load_pairs(dataset), tiny_tokenizer(), args, "train")
        assert "as in TRL" not in caplog.text
