"""Positions of tokens in models that count an image by its height and width (M-RoPE).

Qwen2-VL and its successors give each token three positions: time, row and column (arXiv:2409.12191). A text token has
the same number three times. An image of h x w tokens that begins at position p has

    (p, p + row, p + column)          and the token behind it   p + max(h, w)

in all three. So a completion continues from the largest position of its prompt, whatever the prompt holds:

    position(t) = max over the prompt + 1 + t - len(prompt)          for t >= len(prompt).

The positions of the prompt are the family's own (`get_rope_index`).
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch

from wishbone.data.batch import TokenizedPair
from wishbone.data.pair_images import Ids


class VisionPositions:
    """Positions of the prompts of pairs with images.

    Args:
        decoder: the model without its output head.
    """

    def __init__(self, decoder: Any) -> None:
        self._index: Callable[..., Any] | None = getattr(decoder, "get_rope_index", None)
        self._takes = set() if self._index is None else set(signature(self._index).parameters)

    def __call__(self, pair: TokenizedPair) -> Ids | None:
        """Return the positions of a pair's prompt, [3, prompt]; None where tokens are counted one by one."""
        if self._index is None or pair.images is None:
            return None
        prompt = torch.tensor([pair.chosen[: pair.chosen_start]])
        given: dict[str, Any] = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        given |= {name: torch.tensor([kinds]) for name, kinds in pair.images.kinds.items()}
        given |= pair.images.inputs
        positions, _ = self._index(**{name: value for name, value in given.items() if name in self._takes})
        found: Ids = positions[:, 0].numpy()
        return found
