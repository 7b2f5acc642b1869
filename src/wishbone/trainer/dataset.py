"""TRL's preparation of a data set, in batches instead of row by row; the token ids are TRL's."""

from __future__ import annotations

import logging

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig as TRLDPOConfig

from wishbone.data.columns import IdColumn
from wishbone.data.tokenize import tokenize_pairs

logger = logging.getLogger(__name__)


def prepare_pairs(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, args: TRLDPOConfig, name: str
) -> Dataset | IterableDataset:
    """Tokenize pairs and drop those that truncation would leave without a completion.

    Args:
        dataset: pairs as text, as messages or as token ids.
        tokenizer: the model's.
        args: `max_length`, `truncation_mode`, `dataset_num_proc` and, of Wishbone's own, `max_prompt_length` are read.
        name: what a warning calls the data set: "train" or "eval".

    Returns:
        Rows of `prompt_ids`, `chosen_ids` and `rejected_ids`.
    """
    tokenized = tokenize_pairs(dataset, tokenizer, num_proc=args.dataset_num_proc)
    longest_prompt = getattr(args, "max_prompt_length", None)
    if longest_prompt is not None:
        tokenized = tokenized.map(
            lambda prompt_ids: {"prompt_ids": prompt_ids[-longest_prompt:]}, input_columns="prompt_ids"
        )
    if args.max_length is None or args.truncation_mode != "keep_start":
        return tokenized
    longest = args.max_length
    if not isinstance(tokenized, Dataset):
        return tokenized.filter(lambda prompt_ids: len(prompt_ids) < longest, input_columns="prompt_ids")
    kept = np.flatnonzero(IdColumn(tokenized, "prompt_ids").lengths < longest)
    if len(kept) == len(tokenized):
        return tokenized
    logger.warning(
        "%d of %d %s pairs were dropped: their prompt alone fills max_length=%d.",
        len(tokenized) - len(kept),
        len(tokenized),
        name,
        longest,
    )
    return tokenized.select(kept)
