"""TRL's trainer with rows of pairs as token ids, tokenized many at a time, and batches of whole pairs, with images."""

from __future__ import annotations

from copy import copy
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.data.batch import TokenizedPair
from wishbone.phases import phase
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.collator import ImagePairCollator, PairCollator
from wishbone.trainer.dataset import prepare_pairs
from wishbone.trainer.image_dataset import (
    ImagePairs,
    longest_image_pair,
    prepare_evaluated,
    prepare_image_pairs,
    trial_image_pairs,
)
from wishbone.trainer.image_rows import ImageRows


class TokenizingTrainer(TRLDPOTrainer):  # type: ignore[misc]
    """TRL's trainer with the data sets and the collator of Wishbone's step."""

    args: DPOConfig
    train_dataset: Any
    eval_dataset: Any
    _image_pairs: ImagePairs | None
    _pairs_with_images: list[TokenizedPair]

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: DPOConfig, dataset_name: str
    ) -> Dataset | IterableDataset:
        """Tokenize in batches instead of row by row; the ids are TRL's. With a processor, TRL tokenizes the texts."""
        if isinstance(processing_class, PreTrainedTokenizerBase):
            return prepare_pairs(dataset, processing_class, args, dataset_name)
        whole = copy(args)
        whole.max_length = None  # rows that are too long are dropped below, after prompts were cut
        tokenized = super()._prepare_dataset(dataset, processing_class, whole, dataset_name)
        return prepare_pairs(tokenized, self._tokenizer, args, dataset_name)

    def _collate_pairs(self) -> list[TokenizedPair]:
        """Set a collator that returns lists of pairs; return some pairs with images for trials, or none."""
        options = {
            "pad_token_id": self._tokenizer.pad_token_id,
            "max_length": self.args.max_length,
            "truncation_mode": self.args.truncation_mode,
            "pad_to_multiple_of": self.args.pad_to_multiple_of,
        }
        if not self._is_vision_dataset:
            self.data_collator = PairCollator(**options)
            return []
        encoder = ImageRows(self.processing_class)
        with phase("images", note="tokens of each pair with its images"):
            self._image_pairs = prepare_image_pairs(self.train_dataset, encoder, self.args, "train")
            self.train_dataset = self._image_pairs.rows
            self.eval_dataset = prepare_evaluated(self.eval_dataset, encoder, self.args)
        self.data_collator = ImagePairCollator(rows=encoder, longest_prompt=self.args.max_prompt_length, **options)
        trial = trial_image_pairs(self.train_dataset, encoder, self.args)
        self._pairs_with_images = [*longest_image_pair(self._image_pairs, encoder, self.args), *trial]
        return trial
