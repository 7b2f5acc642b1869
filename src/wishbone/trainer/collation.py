"""From a trainer's data sets to batches of whole pairs: token ids as TRL's, and images where rows have some."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wishbone.data.batch import TokenizedPair
from wishbone.phases import phase
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.collator import ImagePairCollator, PairCollator
from wishbone.trainer.image_dataset import (
    ImagePairs,
    longest_image_pair,
    prepare_evaluated,
    prepare_image_pairs,
    trial_image_pairs,
)
from wishbone.trainer.image_rows import ImageRows


@dataclass(frozen=True)
class Collation:
    """What a trainer's loops read.

    Attributes:
        collator: makes batches with lists of pairs.
        trained, evaluated: its data sets, without rows whose images leave no room.
        images: the training pairs with their lengths, if they have images.
        tried: some pairs with images, on which the model's form is tried.
        longest: the training pair with the longest prompt, if it has images.
    """

    collator: PairCollator
    trained: Any
    evaluated: Any
    images: ImagePairs | None = None
    tried: list[TokenizedPair] = field(default_factory=list)
    longest: list[TokenizedPair] = field(default_factory=list)


def collation_of(args: DPOConfig, trained: Any, evaluated: Any, pad_token_id: int, processor: Any) -> Collation:
    """Return how pairs become batches.

    Args:
        args: of the trainer.
        trained, evaluated: its prepared data sets.
        pad_token_id: of the tokenizer.
        processor: encodes the images of rows, or None where they have none.
    """
    options = {
        "pad_token_id": pad_token_id,
        "max_length": args.max_length,
        "truncation_mode": args.truncation_mode,
        "pad_to_multiple_of": args.pad_to_multiple_of,
    }
    if processor is None:
        return Collation(PairCollator(**options), trained, evaluated)
    encoder = ImageRows(processor)
    with phase("images", note="tokens of each pair with its images"):
        images = prepare_image_pairs(trained, encoder, args, "train")
        evaluated = prepare_evaluated(evaluated, encoder, args)
    return Collation(
        ImagePairCollator(rows=encoder, longest_prompt=args.max_prompt_length, **options),
        images.rows,
        evaluated,
        images,
        trial_image_pairs(images.rows, encoder, args),
        longest_image_pair(images, encoder, args),
    )
