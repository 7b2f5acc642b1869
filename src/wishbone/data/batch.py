"""Pairs as tensors; all index arithmetic is in this module.

A sequence is prompt and completion. The chosen and the rejected sequence of a pair agree in their first `shared` tokens
(the prompt, and the beginning that the completions have in common), so the pair is laid out as `[shared | rest of
chosen | rest of rejected]`, and token t of a sequence has the index

    shared_start + t              for t < shared
    branch_start + t - shared     from there on.

Its log-probability is read from the hidden state of token t - 1 of the same sequence, by the same rule; the last shared
token is therefore read twice. A token without a predecessor is not scored.

`SharedPrefixBatch` is such a row. `PlainBatch` holds each pair as two right-padded sequences, for architectures whose
layers cannot take the mask. Both have the same interface, so the step does not know which one it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wishbone.data.pair_images import Ids, ImageAttention, PairImages, continued, placed_images
from wishbone.ops.prefix_attention import Document, PrefixLayout
from wishbone.ops.to_device import to_device


@dataclass(frozen=True)
class TokenizedPair:
    """One preference pair after truncation.

    Attributes:
        chosen, rejected: token ids of the whole sequences, prompt first.
        chosen_start, rejected_start: index of the first completion token; only tokens from there on are scored.
        ref_chosen_logps, ref_rejected_logps: reference log-probabilities if they were computed before training.
        images: the images of the prompt, whose placeholder tokens are all in both sequences; None if it has none.
    """

    chosen: list[int]
    rejected: list[int]
    chosen_start: int
    rejected_start: int
    ref_chosen_logps: float | None = None
    ref_rejected_logps: float | None = None
    images: PairImages | None = None

    @property
    def shared(self) -> int:
        """Leading tokens that both sequences have in common."""
        shortest = min(len(self.chosen), len(self.rejected))
        if self.chosen[:shortest] == self.rejected[:shortest]:
            return shortest
        low, high = 0, shortest
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.chosen[:middle] == self.rejected[:middle] else (low, middle)
        return low

    @property
    def row_tokens(self) -> int:
        """Tokens of the pair in a shared-prefix row."""
        return len(self.chosen) + len(self.rejected) - self.shared

    def sequences(self) -> tuple[tuple[list[int], int], tuple[list[int], int]]:
        """Return `(ids, completion start)` of the chosen and of the rejected sequence."""
        return (self.chosen, self.chosen_start), (self.rejected, self.rejected_start)


def truncated_pair(
    prompt: list[int],
    chosen: list[int],
    rejected: list[int],
    *,
    max_length: int | None = None,
    keep_end: bool = False,
    ref_chosen_logps: float | None = None,
    ref_rejected_logps: float | None = None,
    images: PairImages | None = None,
) -> TokenizedPair:
    """Join prompt and completions; cut each sequence to `max_length` tokens, at its end or (`keep_end`) its start."""

    def cut(completion: list[int]) -> tuple[list[int], int]:
        ids = prompt + completion
        if max_length is None or len(ids) <= max_length:
            return ids, len(prompt)
        if keep_end:
            return ids[-max_length:], max(0, len(prompt) - (len(ids) - max_length))
        return ids[:max_length], min(len(prompt), max_length)

    (chosen_ids, chosen_start), (rejected_ids, rejected_start) = cut(chosen), cut(rejected)
    return TokenizedPair(
        chosen_ids, rejected_ids, chosen_start, rejected_start, ref_chosen_logps, ref_rejected_logps, images
    )


@dataclass(frozen=True)
class PreferenceBatch:
    """Pairs as inputs of a model. Sequence 2i is the chosen and 2i + 1 the rejected one of pair i.

    Attributes:
        pairs: the pairs, in order.
        input_ids: [rows, tokens], int64.
        position_ids: [rows, tokens], int64: position of each token in its own sequence; [3, rows, tokens] where images
            are counted by their height and width.
        predictor_index: [scored], int64: flat index into rows * tokens of the token whose hidden state predicts the
            scored one.
        targets: [scored], int64: ids of the scored tokens.
        sequence_index: [scored], int64: the sequence of each scored token.
        scored_index: [scored], int64: index among the scored tokens of that sequence, from 0.
        completion_lengths: [sequences], float32: completion tokens, scored or not.
        scored_lengths: [sequences], float32: scored completion tokens.
    """

    pairs: tuple[TokenizedPair, ...]
    input_ids: Tensor
    position_ids: Tensor
    predictor_index: Tensor
    targets: Tensor
    sequence_index: Tensor
    scored_index: Tensor
    completion_lengths: Tensor
    scored_lengths: Tensor

    @property
    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments for the model's forward pass."""
        raise NotImplementedError

    def spans(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield `(pair, start, stop, sequences)`: the tokens of a pair, and in how many of its sequences they lie.

        `start` and `stop` are flat indices into rows * tokens; padding is in no span.
        """
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        """Tokens that the model processes, padding included."""
        return self.input_ids.numel()


@dataclass(frozen=True)
class SharedPrefixBatch(PreferenceBatch):
    """One row `[shared | chosen | rejected][shared | ...]` and the layout of its attention.

    Attributes:
        layout: where stems and branches lie.
        images: what the model takes besides of the images in the row, each once, in host memory; empty without images.
            They are on the device for a forward pass alone: the backward pass reads no pixels.
    """

    layout: PrefixLayout
    images: dict[str, Tensor] = field(default_factory=dict)

    @property
    def model_inputs(self) -> dict[str, Any]:
        """Ids, positions, images and the layout, which the attention hook reads; there is no mask."""
        inputs = {"input_ids": self.input_ids, "position_ids": self.position_ids, "prefix_layout": self.layout}
        return inputs | {name: to_device(tensor, self.input_ids.device) for name, tensor in self.images.items()}

    def spans(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield the stem of each pair, which lies in both sequences, and its branches, as `PreferenceBatch.spans`."""
        for pair, document in zip(range(len(self.pairs)), self.layout.documents, strict=False):
            yield pair, document.start, document.stem_end, 2
            yield pair, document.stem_end, document.end, 1

    @classmethod
    def from_pairs(
        cls,
        pairs: Sequence[TokenizedPair],
        device: torch.device | str = "cpu",
        *,
        padded_length: Callable[[int], int] = lambda tokens: tokens,
        prompt_positions: Callable[[TokenizedPair], Ids | None] = lambda pair: None,
        image_attention: ImageAttention = "causal",
    ) -> SharedPrefixBatch:
        """Lay pairs out in one row. Padding is a document of its own at the row's end.

        Args:
            pairs: the pairs of the row.
            device: device of its tensors.
            padded_length: maps the tokens of the row to its length with padding.
            prompt_positions: returns the positions of a pair's prompt, [axes, prompt], or None where they count up.
            image_attention: which tokens of an image see each other.
        """
        ids: list[Ids] = []
        positions: list[Ids] = []
        documents: list[Document] = []
        scored = _Scored()
        end = 0
        for pair in pairs:
            shared, start = pair.shared, end
            sequences = [(np.array(sequence, dtype=np.int64), first) for sequence, first in pair.sequences()]
            of_prompt = prompt_positions(pair)
            places = np.arange(max(len(pair.chosen), len(pair.rejected)))[None]
            if of_prompt is not None:
                places = continued(of_prompt, places.shape[1])
            ids.append(sequences[0][0][:shared])
            positions.append(places[:, :shared])
            end += shared
            ends = []
            for sequence, first_scored in sequences:
                scored.add(sequence, first_scored, stem=(start, shared), branch=end)
                ids.append(sequence[shared:])
                positions.append(places[:, shared : len(sequence)])
                end += len(sequence) - shared
                ends.append(end)
            documents.append(Document(start, start + shared, tuple(ends)))
        padding = padded_length(end) - end
        if padding:
            documents.append(Document(end, end + padding))
            ids.append(np.zeros(padding, dtype=np.int64))
            positions.append(np.arange(padding)[None])
        axes = max(map(len, positions))
        places = np.concatenate([np.broadcast_to(one, (axes, one.shape[1])) for one in positions], axis=1)
        position_ids = _to([places], device)[:, None]
        together = [
            (at.start + start, at.start + end)
            for pair, at in zip(pairs, documents, strict=False)
            if pair.images is not None and image_attention != "causal"
            for start, end in pair.images.spans
        ]
        layout = PrefixLayout(tuple(documents), tuple(together), image_attention == "with window")
        return cls(
            pairs=tuple(pairs),
            input_ids=_to(ids, device)[None],
            position_ids=position_ids[0] if axes == 1 else position_ids,
            layout=layout,
            images=placed_images(
                [(pair.images, [(0, at.start)]) for pair, at in zip(pairs, documents, strict=False)],
                (1, layout.length),
                "cpu",
            ),
            **scored.tensors(device),
        )


@dataclass(frozen=True)
class PlainBatch(PreferenceBatch):
    """Two right-padded rows per pair, with the ordinary attention mask [rows, tokens].

    Attributes:
        attention_mask: 1 for tokens, 0 for padding.
        images: what the model takes besides of the images, each once for each of its pair's two rows, in host memory.
    """

    attention_mask: Tensor
    images: dict[str, Tensor] = field(default_factory=dict)

    @property
    def model_inputs(self) -> dict[str, Any]:
        """Ids, mask and images, as every causal model takes them."""
        images = {name: to_device(tensor, self.input_ids.device) for name, tensor in self.images.items()}
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **images}

    def spans(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield each sequence, as `PreferenceBatch.spans`."""
        width = self.input_ids.shape[1]
        for row, ids in enumerate(ids for pair in self.pairs for ids, _ in pair.sequences()):
            yield row // 2, row * width, row * width + len(ids), 1

    @classmethod
    def from_pairs(cls, pairs: Sequence[TokenizedPair], device: torch.device | str = "cpu") -> PlainBatch:
        """Put each sequence into a row of its own."""
        sequences = [
            (np.array(ids, dtype=np.int64), first_scored) for pair in pairs for ids, first_scored in pair.sequences()
        ]
        width = max(len(ids) for ids, _ in sequences)
        scored = _Scored()
        rows, masks = np.zeros((2, len(sequences), width), dtype=np.int64)
        for row, (ids, first_scored) in enumerate(sequences):
            rows[row, : len(ids)], masks[row, : len(ids)] = ids, 1
            scored.add(ids, first_scored, stem=(row * width, len(ids)), branch=0)
        return cls(
            pairs=tuple(pairs),
            input_ids=_to(list(rows), device).view(len(sequences), width),
            position_ids=_to([np.arange(width)] * len(sequences), device).view(len(sequences), width),
            attention_mask=_to(list(masks), device).view(len(sequences), width),
            images=placed_images(
                [(pair.images, [(2 * i, 0), (2 * i + 1, 0)]) for i, pair in enumerate(pairs)],
                (len(sequences), width),
                "cpu",
            ),
            **scored.tensors(device),
        )


def images_of_padded(
    pairs: Sequence[TokenizedPair], shape: tuple[int, int], device: torch.device | str
) -> dict[str, Tensor]:
    """Return what a model takes of the images of TRL's padded batch: all chosen sequences, then all rejected ones."""
    count = len(pairs)
    placed = [(pair.images, [(row, 0)]) for row, pair in enumerate([*pairs, *pairs])]
    assert shape[0] == 2 * count
    return placed_images(placed, shape, device)


class _Scored:
    """Collects the scored tokens of the sequences of a batch, in the order chosen, rejected, chosen, ..."""

    def __init__(self) -> None:
        self.predictors: list[Ids] = []
        self.targets: list[Ids] = []
        self.owners: list[Ids] = []
        self.places: list[Ids] = []
        self.completion_lengths: list[int] = []
        self.scored_lengths: list[int] = []

    def add(self, ids: Ids, first_scored: int, *, stem: tuple[int, int], branch: int) -> None:
        """Add one sequence: its first `stem[1]` tokens are at `stem[0]` and after, the others at `branch` and after."""
        stem_start, shared = stem
        first = max(first_scored, 1)
        predicting = np.arange(first - 1, len(ids) - 1)
        self.predictors.append(predicting + np.where(predicting < shared, stem_start, branch - shared))
        self.targets.append(ids[first:])
        self.owners.append(np.full(len(predicting), len(self.completion_lengths)))
        self.places.append(np.arange(len(predicting)))
        self.completion_lengths.append(len(ids) - first_scored)
        self.scored_lengths.append(len(predicting))

    def tensors(self, device: torch.device | str) -> dict[str, Tensor]:
        """Return the fields of `PreferenceBatch` about scored tokens."""
        return {
            "predictor_index": _to(self.predictors, device),
            "targets": _to(self.targets, device),
            "sequence_index": _to(self.owners, device),
            "scored_index": _to(self.places, device),
            "completion_lengths": _to([np.array(self.completion_lengths, dtype=np.float32)], device),
            "scored_lengths": _to([np.array(self.scored_lengths, dtype=np.float32)], device),
        }


def _to(parts: Sequence[np.ndarray[Any, Any]], device: torch.device | str) -> Tensor:
    """Join arrays and copy them to `device`."""
    return to_device(torch.from_numpy(np.concatenate(parts)), device)
