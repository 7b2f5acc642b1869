"""Prepares a data set with images: measures lengths, and drops pairs that cannot be trained.

Files are looked at and not unpacked, so what is too large is refused before anything unpacks it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from wishbone.data.batch import TokenizedPair
from wishbone.errors import RequestError, counted_of
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.image_rows import NEAR, ImageRows, completion_has_image, room_of_prompt

Lengths = np.ndarray[Any, np.dtype[np.int64]]

LENGTHS = "lengths_with_images"
"""Column with the tokens of prompt, chosen and rejected of pairs that have been measured."""
READ_AT_A_TIME = 16
FIRST_ROWS = 100
MOST_PROBLEMS = 20
"""Rows that cannot be read before reading stops."""
TRIAL_PAIRS = 2
"""Pairs with images with which a row is compared with ordinary sequences before training."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImagePairs:
    """A data set with images, ready for the step.

    Attributes:
        rows: the data set.
        lengths: tokens of prompt, chosen and rejected, [rows, 3]; None for a stream.
    """

    rows: Dataset | IterableDataset
    lengths: Lengths | None

    def tokens(self, max_length: int | None) -> Lengths:
        """Return the tokens of each pair in a shared-prefix row, [rows]."""
        assert self.lengths is not None
        prompt, chosen, rejected = self.lengths.T
        most = np.iinfo(np.int64).max if max_length is None else max_length
        both = np.minimum(prompt + chosen, most) + np.minimum(prompt + rejected, most)
        tokens: Lengths = both - np.minimum(prompt, most)
        return tokens


def prepare_image_pairs(rows: Any, encoder: ImageRows, args: DPOConfig, name: str) -> ImagePairs:
    """Measure pairs with images and drop those whose prompt leaves no room for a completion.

    Pairs that have been measured have a column of lengths; only prompts about as long as the room are measured again.

    Args:
        rows: as TRL takes them.
        encoder: encodes a row.
        args: `max_length` and `max_prompt_length` are read.
        name: what a message calls the data set: "train", "eval" or the name of one of several.

    Raises:
        RequestError: naming rows whose images cannot be read, or where no pair would be left.
    """
    room = room_of_prompt(args.max_length, args.max_prompt_length)
    if not isinstance(rows, Dataset):
        if room is None:
            return ImagePairs(rows, None)
        return ImagePairs(rows.filter(lambda row: encoder.lengths(row, room)[0] <= room), None)
    found: list[tuple[int, int, int]] = []
    problems: list[str] = []
    known = _known_lengths(rows)
    asked = range(len(rows)) if known is None else _near(known, rows, room)
    for number, row in zip(asked, rows_with_files(rows if known is None else rows.select(asked)), strict=True):
        try:
            found.append(encoder.lengths(row, room))
        except RequestError as error:
            problems.append(f"{name} data, row {number + 1:,}: {error}")
            if len(problems) == MOST_PROBLEMS:
                break
    if problems:
        raise RequestError(problems)
    lengths = np.array(found, dtype=np.int64).reshape(-1, 3)
    if known is not None:
        known[list(asked)] = lengths
        lengths = known
    if room is None:
        return ImagePairs(rows, lengths)
    kept = np.flatnonzero(lengths[:, 0] <= room)
    if len(kept) == len(lengths):
        return ImagePairs(rows, lengths)
    if not len(kept):
        raise RequestError(
            f"every {name} pair would be dropped ({len(lengths):,}): prompts with their images have more than {room:,} "
            f"tokens (the shortest {int(lengths[:, 0].min()):,}), and tokens of images are never cut; raise max_length "
            "or max_prompt_length, or let the processor make images smaller"
        )
    logger.warning(
        "%s dropped: the prompt with its images has more than %d tokens, and tokens of images are never cut.",
        counted_of(len(lengths) - len(kept), len(lengths), f"{name} pair", "is", "are"),
        room,
    )
    return ImagePairs(rows.select(kept), lengths[kept])


def _known_lengths(rows: Dataset) -> Lengths | None:
    """Tokens of prompt, chosen and rejected where a column has them, [rows, 3]."""
    if LENGTHS not in rows.column_names:
        return None
    return np.array(rows.select_columns([LENGTHS])[LENGTHS][:], dtype=np.int64).reshape(-1, 3)


def _near(known: Lengths, rows: Dataset, room: int | None) -> list[int]:
    """Rows whose prompts may be on the other side of the room than was measured."""
    if room is None:
        return []
    images = [len(row["images"] or ()) for row in rows.select_columns(["images"]).with_format("arrow").to_list()]
    found: list[int] = np.flatnonzero(np.abs(known[:, 0] - room) <= NEAR * np.array(images)).tolist()
    return found


def prepare_evaluated(evaluated: Any, encoder: ImageRows, args: DPOConfig) -> Any:
    """Return the evaluation sets of a trainer, each prepared as `prepare_image_pairs` does."""
    if evaluated is None:
        return None
    if isinstance(evaluated, Mapping):
        return {name: prepare_image_pairs(rows, encoder, args, str(name)).rows for name, rows in evaluated.items()}
    return prepare_image_pairs(evaluated, encoder, args, "eval").rows


def trial_image_pairs(rows: Any, encoder: ImageRows, args: DPOConfig) -> list[TokenizedPair]:
    """Return the first `TRIAL_PAIRS` pairs of a data set that have images, or fewer."""
    pairs: list[TokenizedPair] = []
    for row in islice(rows, FIRST_ROWS):
        pair = encoder.pair(row, max_length=args.max_length, longest_prompt=args.max_prompt_length)
        if pair.images is not None:
            pairs.append(pair)
        if len(pairs) == TRIAL_PAIRS:
            break
    return pairs


def longest_image_pair(prepared: ImagePairs, encoder: ImageRows, args: DPOConfig) -> list[TokenizedPair]:
    """Return the pair with the longest prompt if it has images; nothing of a stream."""
    if prepared.lengths is None or not len(prepared.lengths):
        return []
    return trial_image_pairs(prepared.rows.select([int(prepared.lengths[:, 0].argmax())]), encoder, args)


def completions_with_images(rows: Any) -> int | None:
    """Return the number, from 1, of the first row whose completion holds an image; None if there is none.

    Of a stream the first rows are looked at.
    """
    if isinstance(rows, Mapping):
        return next((found for one in rows.values() if (found := completions_with_images(one)) is not None), None)
    if isinstance(rows, Dataset):
        sides = [name for name in ("chosen", "rejected") if name in rows.column_names]
        if not any("image" in str(rows.features[name]) or "type" in str(rows.features[name]) for name in sides):
            return None
        rows = rows.with_format(None).select_columns(sides)
    numbered: Iterable[tuple[int, Any]] = enumerate(rows if isinstance(rows, Dataset) else islice(rows, FIRST_ROWS), 1)
    return next((number for number, row in numbered if completion_has_image(row)), None)


def rows_with_files(rows: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set, images as bytes or paths of their files where they are stored so."""
    named = [name for name in ("image", "images") if name in rows.column_names]
    texts = rows.remove_columns(named).with_format(None)
    files = rows.select_columns(named).with_format("arrow").iter(batch_size=READ_AT_A_TIME)
    cells = (row for table in files for row in table.to_pylist())
    for text, images in zip(texts, cells, strict=True):
        yield {**text, **images}
