"""`pairs.json` of a run: its first pairs token by token, as the model sees them.

    {"pairs": [{"heldout": false, "lengths": [12, 40, 38], "max_length": 512,
                "prompt": ["<|im_start|>", "user", ...], "chosen": [...], "rejected": [...]}]}

Joined, the tokens are the text that the model reads; only those of the completions are trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from wishbone.check.model_view import ModelView
from wishbone.data.tokenize import ID_COLUMNS
from wishbone.run.run_files import write_json

PAIRS = "pairs.json"
TRAINED, HELD_OUT = 3, 2
"""Pairs that are shown of each kind."""
MOST_TOKENS = 400
"""Tokens that are shown of each side."""


def write_shown_pairs(
    run_dir: Path,
    trained: Dataset,
    heldout: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> list[dict[str, Any]]:
    """Write the first pairs of a run into its directory, and return them."""
    view = ModelView(tokenizer)
    shown = [_shown(row, view, max_length, heldout=False) for row in trained.select(range(min(TRAINED, len(trained))))]
    if heldout is not None:
        rows = heldout.select(range(min(HELD_OUT, len(heldout))))
        shown += [_shown(row, view, max_length, heldout=True) for row in rows]
    write_json(run_dir / PAIRS, {"pairs": shown})
    return shown


def _shown(row: Any, view: ModelView, max_length: int | None, *, heldout: bool) -> dict[str, Any]:
    sides = {name.removesuffix("_ids"): row[name] for name in ID_COLUMNS}
    return {
        "heldout": heldout,
        "lengths": [len(ids) for ids in sides.values()],
        "max_length": max_length,
        **{name: [text for text, _ in view.tokens(ids, MOST_TOKENS)] for name, ids in sides.items()},
    }
