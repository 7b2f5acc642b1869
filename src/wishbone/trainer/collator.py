"""From rows of token ids to a batch: TRL's tensors, and beside them the pairs that the step reads.

The step builds its own tensors, one row after the other. transformers counts tokens with the tensors of the batch,
prediction returns them as labels, and users find them in `trainer.get_train_dataloader()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import DataLoaderConfiguration
from trl.trainer.dpo_trainer import DataCollatorForPreference

from wishbone.data.batch import TokenizedPair, truncated_pair
from wishbone.trainer.image_rows import ImageRows


def load_whole_pairs(loading: DataLoaderConfiguration) -> None:
    """Set accelerate's data loading for batches that hold pairs: each process reads its own, the host never waits."""
    if loading.dispatch_batches is None:
        loading.dispatch_batches = False  # streams too: accelerate would cut the list of pairs of a batch
    loading.non_blocking = True


class PairCollator(DataCollatorForPreference):  # type: ignore[misc]
    """Turns rows of token ids into `TokenizedPair`s and padded tensors, truncated and padded as TRL does."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `pairs`, a list of `TokenizedPair`, and TRL's tensors: all chosen sequences, then all rejected ones.

        `input_ids`, `attention_mask` and `completion_mask` are int64 of shape [2 * pairs, longest];
        `ref_chosen_logps` and `ref_rejected_logps`, [pairs], are there if the rows have them.
        """
        pairs = [
            truncated_pair(
                list(example["prompt_ids"]),
                list(example["chosen_ids"]),
                list(example["rejected_ids"]),
                max_length=self.max_length,
                keep_end=self.truncation_mode == "keep_end",
                ref_chosen_logps=example.get("ref_chosen_logps"),
                ref_rejected_logps=example.get("ref_rejected_logps"),
            )
            for example in examples
        ]
        values = ("ref_chosen_logps", "ref_rejected_logps")
        stored = {name: torch.tensor([row[name] for row in examples]) for name in values if name in examples[0]}
        return {**self._tensors(pairs), **stored, "pairs": pairs}

    def _tensors(self, pairs: list[TokenizedPair]) -> dict[str, torch.Tensor]:
        sequences = [side for both in zip(*(pair.sequences() for pair in pairs), strict=True) for side in both]
        multiple = self.pad_to_multiple_of or 1
        width = -(-max(len(ids) for ids, _ in sequences) // multiple) * multiple
        position = torch.arange(width)
        length, start = torch.tensor([[len(ids), start] for ids, start in sequences]).unsqueeze(2).unbind(1)
        return {
            "input_ids": torch.tensor([ids + [self.pad_token_id] * (width - len(ids)) for ids, _ in sequences]),
            "attention_mask": (position < length).long(),
            "completion_mask": ((position >= start) & (position < length)).long(),
        }


@dataclass
class ImagePairCollator(PairCollator):
    """The same for rows with images, which are encoded here.

    Attributes:
        rows: encodes a row.
        longest_prompt: most tokens of a prompt, or None.
    """

    rows: ImageRows | None = None
    longest_prompt: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what `PairCollator` does, without values of the reference; the images are in `pairs`."""
        assert self.rows is not None
        pairs = [
            self.rows.pair(row, max_length=self.max_length, longest_prompt=self.longest_prompt) for row in examples
        ]
        return {**self._tensors(pairs), "pairs": pairs}
