"""Pairs with images as tokens, for all checks before a run: lengths, repeats, lost text.

The ids that are trained are made with the pixels, batch by batch (`image_rows`). Before that, the text of a pair is
tokenized as any other's, and its prompt is filled up to the length that it has with its images:

    prompt_ids = ids of the text, each image one mark ++ filling    length: that of the trained prompt

What the files hold stands in one number a row, so pairs with other images are other pairs. Each file is read once: the
trainer takes the lengths from their column.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import ProcessorMixin

from wishbone.data.columns import IMAGE_KEY, token_lengths
from wishbone.data.images import size_and_digest
from wishbone.data.row_reader import InvalidRows
from wishbone.data.rows import IMAGE
from wishbone.data.tokenize import ID_COLUMNS, tokenize_pairs
from wishbone.errors import RequestError, counted_of
from wishbone.phases import phase
from wishbone.trainer.image_dataset import LENGTHS, rows_with_files
from wishbone.trainer.image_rows import ImageRows

IMAGES = "images"
SHOWN = 10

logger = logging.getLogger(__name__)


def has_images(pairs: Dataset) -> bool:
    """Return whether pairs have a column of images."""
    return IMAGES in pairs.column_names


def tokenize_image_pairs(
    pairs: Dataset, processor: ProcessorMixin, name: str, invalid_rows: InvalidRows = "refuse"
) -> Dataset:
    """Add the columns that `tokenize_pairs` adds, and one that stands for the images.

    Args:
        pairs: of `load_pairs` with images.
        processor: of the model.
        name: of the source, for messages.
        invalid_rows: "drop" leaves out rows whose images cannot be read.

    Raises:
        RequestError: naming rows whose images cannot be read or do not go with the prompt, unless they are dropped;
            none is left.
    """
    tokenized = tokenize_pairs(pairs.remove_columns([IMAGES]), processor.tokenizer)
    encoder = ImageRows(processor)
    prompts: list[list[int]] = []
    keys: list[int] = []
    lengths: list[tuple[int, int, int]] = []
    kept: list[int] = []
    problems: list[str] = []
    with phase("images", len(pairs), "pair", note="sizes, and tokens of each pair") as counting:
        texts = tokenized.select_columns(["prompt_ids"])["prompt_ids"]
        for index, (row, text) in enumerate(zip(rows_with_files(pairs), texts, strict=True)):
            counting.more(1)
            try:
                tokens, key = _measured(row, encoder)
            except RequestError as error:
                problems.append(f"row {row['source_row']} {error}")
                continue
            kept.append(index)
            prompts.append((list(text) + [text[-1] if text else 0] * tokens[0])[: tokens[0]])
            keys.append(key)
            lengths.append(tokens)
    if problems:
        more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN]) + more
        told = f"{name}: of {counted_of(len(problems), len(pairs), 'row')} images cannot be trained"
        if invalid_rows == "refuse" or not kept:
            remedy = (
                "Correct them, or set data.invalid_rows: drop to train without these rows" if kept else "Correct them"
            )
            raise RequestError(f"{told}. {remedy}.{listed}")
        logger.warning("%s, and these rows are dropped:%s", told, listed)
    columns = Dataset.from_dict(
        {"prompt_ids": prompts, IMAGE_KEY: keys, LENGTHS: lengths},
        features=Features(
            {"prompt_ids": List(Value("int32")), IMAGE_KEY: Value("int64"), LENGTHS: List(Value("int32"))}
        ),
    )
    whole = [
        tokenized.remove_columns(["prompt_ids"]).select(kept),
        pairs.select_columns([IMAGES]).select(kept),
        columns,
    ]
    return concatenate_datasets(whole, axis=1)


def with_same_columns(pairs: Dataset, other: Dataset | None) -> Dataset:
    """Return pairs with a column of images, empty, where only the other pairs of a run have images."""
    if other is None or not has_images(other) or has_images(pairs):
        return pairs
    lengths = np.stack(token_lengths(pairs, ID_COLUMNS), axis=1).tolist()
    nothing = Dataset.from_dict(
        {IMAGES: [[]] * len(pairs), IMAGE_KEY: [0] * len(pairs), LENGTHS: lengths},
        features=Features({IMAGES: List(IMAGE), IMAGE_KEY: Value("int64"), LENGTHS: List(Value("int32"))}),
    )
    return concatenate_datasets([pairs, nothing], axis=1)


def trained_columns(pairs: Dataset) -> Dataset:
    """Return pairs as the trainer takes them: without ids that stand for a length where they have images."""
    return pairs.remove_columns(list(ID_COLUMNS)) if has_images(pairs) else pairs


def images_of(pairs: Dataset) -> int:
    """Return how many images pairs have, together."""
    if not has_images(pairs):
        return 0
    lists = pairs.select_columns([IMAGES]).with_format("arrow").iter(1000)
    return int(sum(int(np.sum(table.column(IMAGES).combine_chunks().value_lengths().to_numpy())) for table in lists))


def _measured(row: dict[str, Any], encoder: ImageRows) -> tuple[tuple[int, int, int], int]:
    """Tokens of a row's prompt with its images and of its completions, and the number that stands for the images."""
    looked_at = [size_and_digest(image) for image in row[IMAGES]]
    lengths = encoder.lengths(row, sizes=[size for size, _ in looked_at])
    digests = b"".join(digest for _, digest in looked_at)
    key = int.from_bytes(hashlib.blake2b(digests, digest_size=8).digest()) >> 1 if digests else 0
    return lengths, key
