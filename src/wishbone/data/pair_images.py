"""The images of a pair, as its model takes them: tensors that a processor made, and how those of several pairs join.

Images belong to the prompt, which both sequences of a pair share. A processor writes each image into the text as a run
of placeholder tokens and hands its pixels over in tensors whose first dimension counts images, or patches of all
images. So the tensors of several pairs join along it. Where images differ in size, processors fill what is missing with
zeros, and models know from sizes, grids or masks what is filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.to_device import to_device

Ids = np.ndarray[Any, np.dtype[np.int64]]

ImageAttention = Literal["causal", "together", "with window"]
"""Which tokens of an image see each other: the earlier ones, as in text; all (Gemma 3); all in layers with a window."""


@dataclass(frozen=True, eq=False)
class PairImages:
    """The images of one pair's prompt.

    Attributes:
        inputs: tensors by the names of the model's arguments (`pixel_values`, `image_grid_thw`, `image_sizes`, ...);
            dimension 0 counts images, or patches of all images.
        kinds: what each token of the prompt stands for, [prompt], by the name of the model's argument
            (`mm_token_type_ids`, `token_type_ids`): 0 is text, 1 an image. Empty for families that do not say.
        digest: hash of everything that the tensors were made from.
    """

    inputs: dict[str, Tensor]
    kinds: dict[str, list[int]]
    digest: bytes

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Runs of tokens of images in the prompt, `(start, end)` each; empty for families that do not say."""
        kinds = np.array(next(iter(self.kinds.values()), []), dtype=np.int64) > 0
        edges = np.flatnonzero(np.diff(np.concatenate(([0], kinds, [0])))).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))


def joined(images: Sequence[PairImages]) -> dict[str, Tensor]:
    """Return the tensors of several pairs' images as those of one batch, in the order of the pairs.

    What tensors differ by in other dimensions than the first is filled at their end as processors do: with zeros, and
    with -1 where they hold positions of patches.
    """
    names = dict.fromkeys(name for one in images for name in one.inputs)
    return {
        name: _joined([one.inputs[name] for one in images if name in one.inputs], -1 if "position" in name else 0)
        for name in names
    }


def placed_images(
    placed: Sequence[tuple[PairImages | None, Sequence[tuple[int, int]]]],
    shape: tuple[int, int],
    device: torch.device | str,
) -> dict[str, Tensor]:
    """Return what a model takes of the images of a batch; empty where no pair has any.

    Args:
        placed: each pair's images with the places, row and first token, at which its prompt lies in the batch. The
            images come once for each place.
        shape: rows and tokens of the batch.
        device: where the tensors go.
    """
    found = [(images, places) for images, places in placed if images is not None]
    if not found:
        return {}
    tensors = joined([images for images, places in found for _ in places])
    for name in dict.fromkeys(name for images, _ in found for name in images.kinds):
        kinds = np.zeros(shape, dtype=np.int64)
        for images, places in found:
            of_prompt = images.kinds.get(name, [])
            for row, start in places:
                kinds[row, start : start + len(of_prompt)] = of_prompt
        tensors[name] = torch.from_numpy(kinds)
    return {name: to_device(tensor, device) for name, tensor in tensors.items()}


def continued(prompt: Ids, length: int) -> Ids:
    """Return the positions of a sequence of `length` tokens, [axes, length], that begins with a prompt, [axes, prompt].

    What follows counts on from the largest position of the prompt. A sequence that ends within the prompt has the first
    of its positions.
    """
    missing = max(0, length - prompt.shape[1])
    following = prompt.max(initial=-1) + 1 + np.arange(missing)
    return np.concatenate((prompt[:, :length], np.broadcast_to(following, (len(prompt), missing))), axis=1)


def _joined(tensors: Sequence[Tensor], fill: int) -> Tensor:
    trailing = {tensor.shape[1:] for tensor in tensors}
    if len(trailing) == 1:
        return torch.cat(list(tensors))
    largest = [max(sizes) for sizes in zip(*trailing, strict=True)]
    out = tensors[0].new_full((sum(map(len, tensors)), *largest), fill)
    start = 0
    for tensor in tensors:
        place = (slice(start, start + len(tensor)), *(slice(size) for size in tensor.shape[1:]))
        out[place] = tensor
        start += len(tensor)
    return out
