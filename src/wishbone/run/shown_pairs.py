"""`pairs.json` of a run: its first pairs token by token, as the model sees them.

    {"pairs": [{"heldout": false, "lengths": [12, 40, 38], "max_length": 512,
                "prompt": ["<|im_start|>", "user", ...], "chosen": [...], "rejected": [...]}]}

Joined, the tokens are the text that the model reads; only those of the completions are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from wishbone.check.model_view import ModelView
from wishbone.data.tokenize import ID_COLUMNS
from wishbone.run.run_files import write_json
from wishbone.trainer.image_rows import ImageRows
from wishbone.trainer.image_tokens import has_images

PAIRS = "pairs.json"
TRAINED, HELD_OUT = 3, 2
"""Pairs that are shown of each kind."""
MOST_TOKENS = 400
"""Tokens that are shown of each side."""


def write_shown_pairs(
    run_dir: Path,
    trained: Dataset,
    heldout: Dataset | None,
    processor: PreTrainedTokenizerBase | ProcessorMixin,
    max_length: int | None,
) -> list[dict[str, Any]]:
    """Write the first pairs of a run into its directory, and return them.

    Args:
        run_dir: of the run.
        trained, heldout: its pairs, tokenized.
        processor: of the model; where pairs have images, its processor, otherwise its tokenizer.
        max_length: of a sequence.
    """
    view = ModelView(getattr(processor, "tokenizer", processor))
    encode = _ids_of(processor) if has_images(trained) else None
    shown = [
        _shown(row, view, max_length, encode, heldout=is_heldout)
        for pairs, most, is_heldout in ((trained, TRAINED, False), (heldout, HELD_OUT, True))
        for row in ([] if pairs is None else pairs.select(range(min(most, len(pairs)))))
    ]
    write_json(run_dir / PAIRS, {"pairs": shown})
    return shown


def _ids_of(processor: Any) -> Callable[[Any], dict[str, list[int]]]:
    """What gives the ids of a row as they are trained, each image with all its tokens."""
    rows = ImageRows(processor)

    def encode(row: Any) -> dict[str, list[int]]:
        pair = rows.pair(row)
        prompt, chosen, rejected = pair.chosen[: pair.chosen_start], pair.chosen, pair.rejected
        sides = (prompt, chosen[pair.chosen_start :], rejected[pair.rejected_start :])
        return dict(zip(ID_COLUMNS, map(list, sides), strict=True))

    return encode


def _shown(
    row: Any,
    view: ModelView,
    max_length: int | None,
    encode: Callable[[Any], dict[str, list[int]]] | None,
    *,
    heldout: bool,
) -> dict[str, Any]:
    ids_of_row = row if encode is None else encode(row)
    sides = {name.removesuffix("_ids"): ids_of_row[name] for name in ID_COLUMNS}
    return {
        "heldout": heldout,
        "lengths": [len(ids) for ids in sides.values()],
        "max_length": max_length,
        **{name: [text for text, _ in view.tokens(ids, MOST_TOKENS)] for name, ids in sides.items()},
    }
