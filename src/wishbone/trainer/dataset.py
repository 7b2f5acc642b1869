"""TRL's preparation of a data set, in batches instead of row by row; the ids are TRL's where TRL loses no text."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig as TRLDPOConfig

from wishbone.data.columns import IdLists, arrow_batches, token_lengths
from wishbone.data.formats.paired import repeats_question
from wishbone.data.formats.prompt import CONTEXT, IMAGES
from wishbone.data.formats.unread import meant_name
from wishbone.data.lost_rows import lost_by_reason, lost_problems, rows_with_loss
from wishbone.data.tokenize import ID_COLUMNS, LOST_COLUMN, tokenize_pairs
from wishbone.errors import RequestError, counted_of
from wishbone.model.positions import TABLES, positions_of, text_part

MEANT = frozenset({*CONTEXT, "documents", "functions"})
"""Columns that say something of the prompt, here or in other trainers."""

LOOKED_AT = 100
"""Rows in which columns are compared with the prompt."""

logger = logging.getLogger(__name__)


def prepare_pairs(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, args: TRLDPOConfig, name: str
) -> Dataset | IterableDataset:
    """Tokenize pairs and drop those that truncation would leave without a completion.

    Pairs of which the chat template loses text are refused, dropped or kept, as `args.lost_text` says.

    Args:
        dataset: pairs as text, as messages or as token ids.
        tokenizer: the model's.
        args: `max_length`, `truncation_mode`, `dataset_num_proc` and, of Wishbone's own, `max_prompt_length` and
            `lost_text` are read.
        name: what a warning calls the data set: "train" or "eval".

    Returns:
        Rows of `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Raises:
        RequestError: as `tokenize_pairs`, for pairs that lost text, and where no pair would be left; for a stream, when
            it is read.
    """
    if isinstance(dataset, Dataset) and (left := _left_out(dataset)):
        logger.warning(
            "%s data: what %s say is not in the prompt and is not read, as in TRL; train on "
            "wishbone.data.source.load_pairs(dataset), which puts it there.",
            name,
            "the columns " + ", ".join(left),
        )
    if isinstance(dataset, Dataset) and (twice := _with_prompt_twice(dataset)):
        logger.warning(
            "%s data: in %s of the first rows both completions begin with the prompt, which is then trained twice, as "
            "in TRL; remove the column prompt, and it is taken from them.",
            name,
            counted_of(twice, min(LOOKED_AT, len(dataset)), "row"),
        )
    tokenized = tokenize_pairs(dataset, tokenizer, num_proc=args.dataset_num_proc)
    tokenized = _without_losses(tokenized, getattr(args, "lost_text", "refuse"), name)
    longest_prompt = getattr(args, "max_prompt_length", None)
    if longest_prompt is not None:
        tokenized = tokenized.map(
            lambda prompt_ids: {"prompt_ids": prompt_ids[-longest_prompt:]}, input_columns="prompt_ids"
        )
    if args.max_length is None or args.truncation_mode != "keep_start":
        _name_pairs_without_preference(tokenized, None, name)
        return tokenized
    longest = args.max_length
    _name_pairs_without_preference(tokenized, longest, name)
    if not isinstance(tokenized, Dataset):
        return tokenized.filter(lambda prompt_ids: len(prompt_ids) < longest, input_columns="prompt_ids")
    (prompts,) = token_lengths(tokenized, ["prompt_ids"])
    kept = np.flatnonzero(prompts < longest)
    if len(kept) == len(tokenized):
        return tokenized
    if not len(kept):
        raise RequestError(
            f"every {name} pair would be dropped ({len(tokenized):,}): the prompts alone fill max_length={longest}; "
            f"raise it (the shortest prompt has {int(prompts.min())} tokens) or set "
            "max_prompt_length"
        )
    logger.warning(
        "%s dropped: the prompt alone fills max_length=%d.",
        counted_of(len(tokenized) - len(kept), len(tokenized), f"{name} pair", "is", "are"),
        longest,
    )
    return tokenized.select(kept)


def _name_pairs_without_preference(tokenized: Dataset | IterableDataset, longest: int | None, name: str) -> None:
    """Warn of pairs whose completions are the same, as far as truncation leaves them; a stream is not read."""
    if not isinstance(tokenized, Dataset):
        return
    same = 0
    for batch in arrow_batches(tokenized, ID_COLUMNS):
        prompt, chosen, rejected = map(IdLists, batch)
        room = np.full(len(prompt.lengths), np.iinfo(np.int64).max) if longest is None else longest - prompt.lengths
        alike = np.minimum(chosen.lengths, room) == np.minimum(rejected.lengths, room)
        for row in np.flatnonzero(alike & (room > 0)).tolist():
            same += np.array_equal(chosen[row][: room[row]], rejected[row][: room[row]])
    if same:
        logger.warning(
            "%s the same completion twice%s: no preference can be learned there. TRL trains on them, too.",
            counted_of(same, len(tokenized), f"{name} pair", "has", "have"),
            "" if longest is None else f", as far as max_length={longest} reaches",
        )


def refuse_tokens_without_embedding(model: Any, datasets: Any, name: str = "the model") -> None:
    """Refuse token ids beyond the embedding of a model, which a GPU reports only as a failed assertion.

    Args:
        model: the trainer's, or its reference.
        datasets: the prepared training or evaluation set, a dict of those, or None; a stream is not read.
        name: what the model is to a user.

    Raises:
        RequestError: with the largest id and the remedy.
    """
    if isinstance(datasets, Mapping):
        for dataset in datasets.values():
            refuse_tokens_without_embedding(model, dataset, name)
        return
    embedding = model.get_input_embeddings()
    rows = getattr(getattr(embedding, "base_layer", embedding), "num_embeddings", None)
    if rows is None or not isinstance(datasets, Dataset) or not set(ID_COLUMNS) <= set(datasets.column_names):
        return
    batches = (pc.max(lists.flatten()).as_py() for batch in arrow_batches(datasets, ID_COLUMNS) for lists in batch)
    largest = max((found for found in batches if found is not None), default=0)
    if largest >= rows:
        raise RequestError(
            f"the pairs hold token {largest}, and {name} has embeddings for tokens 0 to {rows - 1}: the tokenizer "
            "has more tokens than the model (call model.resize_token_embeddings(len(tokenizer))), or is that of "
            "another model"
        )


def refuse_tokens_without_position(model: Any, datasets: Any, longest: int | None) -> None:
    """Refuse sequences that are longer than the table of a model's positions (GPT-2, OPT).

    Args:
        model: the trainer's.
        datasets: the prepared training or evaluation set, a dict of those, or None; a stream is not read.
        longest: most tokens of a sequence, or None for no limit.

    Raises:
        RequestError: with the longest sequence and the remedy.
    """
    if isinstance(datasets, Mapping):
        for dataset in datasets.values():
            refuse_tokens_without_position(model, dataset, longest)
        return
    config = model.config.to_dict()
    positions = positions_of(config)
    if positions is None or text_part(config).get("model_type") not in TABLES or not isinstance(datasets, Dataset):
        return
    if (longest is not None and longest <= positions) or not set(ID_COLUMNS) <= set(datasets.column_names):
        return
    prompt, chosen, rejected = token_lengths(datasets, ID_COLUMNS)
    most = int((prompt + np.maximum(chosen, rejected)).max(initial=0))
    kept = most if longest is None else min(most, longest)
    if kept > positions:
        raise RequestError(
            f"the longest sequence has {kept} tokens, and the model's table has {positions} positions: set "
            f"max_length={positions} to cut such pairs"
        )


def _left_out(dataset: Dataset) -> list[str]:
    """Columns that say more of the prompt, which TRL does not read, by their names in any spelling."""
    read = {"prompt", *IMAGES}
    names = [name for name in dataset.column_names if name not in read and (meant_name(name) or name) in MEANT]
    sides = [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names]
    if not names or len(sides) < 2:
        return []
    found = set()
    for row in dataset.with_format(None).select_columns([*names, *sides]).select(range(min(LOOKED_AT, len(dataset)))):
        known = [text for side in sides for text in _texts(row[side])]
        for name in names:
            said = [text for text in map(str.strip, _texts(row[name])) if text]
            if not all(any(text in other for other in known) for text in said):
                found.add(name)
    return sorted(found)


def _with_prompt_twice(dataset: Dataset) -> int:
    """In how many of the first rows both completions, texts, begin with the prompt; 0 where those are a minority."""
    names = ["prompt", "chosen", "rejected"]
    if not set(names) <= set(dataset.column_names) or any(
        getattr(dataset.features[name], "dtype", None) not in ("string", "large_string") for name in names
    ):
        return 0
    rows = dataset.with_format(None).select_columns(names).select(range(min(LOOKED_AT, len(dataset))))
    twice = sum(map(repeats_question, rows))
    return twice if twice * 2 > len(rows) else 0


def _texts(value: Any) -> Iterator[str]:
    """The texts in a cell: itself, those of a list, the contents of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, Mapping):
        yield from _texts(value.get("content", value.get("value", value.get("text"))))


def _without_losses(tokenized: Dataset | IterableDataset, lost_text: str, name: str) -> Dataset | IterableDataset:
    if not isinstance(tokenized, Dataset):
        return _stream_without_losses(tokenized, lost_text, name)
    lost = rows_with_loss(tokenized)
    if not len(lost):
        return tokenized
    reasons = lost_by_reason(tokenized, np.arange(1, len(tokenized) + 1))
    if lost_text == "refuse" or (lost_text == "drop" and len(lost) == len(tokenized)):
        raise RequestError(
            [f"{name} data: {problem}" for problem in lost_problems(reasons, len(tokenized), "lost_text")]
        )
    for reason, rows in reasons.items():
        done = "were dropped" if lost_text == "drop" else "are trained without it"
        logger.warning("%d of %d %s pairs %s: %s.", len(rows), len(tokenized), name, done, reason)
    return tokenized.select(np.setdiff1d(np.arange(len(tokenized)), lost)) if lost_text == "drop" else tokenized


def _stream_without_losses(stream: IterableDataset, lost_text: str, name: str) -> IterableDataset:
    """The same for a stream, pair by pair as it is read; the first loss of a kind is logged."""
    told: set[str] = set()

    def kept(row: dict[str, Any]) -> bool:
        if (lost := row.get(LOST_COLUMN)) is None:
            return True
        reason, _, text = lost.partition("\n")
        if lost_text == "refuse":
            raise RequestError(
                f"{name} data: of a pair of the stream {reason}, such as {text!r}. Use a model or a chat template that "
                "writes it, or set lost_text to drop (leave such pairs out) or allow (train what remains of them)"
            )
        if reason not in told:
            told.add(reason)
            done = "are dropped" if lost_text == "drop" else "are trained without it"
            logger.warning("Pairs of the %s stream %s: %s.", name, done, reason)
        return lost_text == "allow"

    return stream.filter(kept)
