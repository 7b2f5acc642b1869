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
from wishbone.data.columns import IMAGE_KEY
from wishbone.data.formats.images import MARK
from wishbone.data.tokenize import ID_COLUMNS
from wishbone.report.answers import Question, completion_text
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


def questions_with_images(pairs: Dataset, processor: ProcessorMixin, count: int) -> list[Question]:
    """Return the first `count` distinct prompts of tokenized pairs that have images, each with its own.

    Args:
        pairs: of `tokenize_image_pairs`.
        processor: of the model.
        count: how many.
    """
    encoder = ImageRows(processor)
    questions: dict[tuple[tuple[int, ...], int], Question] = {}
    for row in pairs:
        pair = encoder.pair(row)
        ids = pair.chosen[: pair.chosen_start]
        question = Question(_with_marks(row["prompt"]), ids, completion_text(row["chosen"]), pair.images)
        questions.setdefault((tuple(ids), row[IMAGE_KEY]), question)
        if len(questions) == count:
            break
    return list(questions.values())


def _with_marks(prompt: Any) -> Any:
    """A prompt as it is shown: each image a mark in the text of its message."""

    def said(message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if not isinstance(content, list):
            return {"role": message["role"], "content": content}
        texts = (MARK if part.get("type") == "image" else part.get("text") or "" for part in content)
        return {"role": message["role"], "content": "".join(texts)}

    return prompt if isinstance(prompt, str) else [said(message) for message in prompt]


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
