"""What the routers of a mixture of experts do in one row.

transformers records the router logits of all layers if `output_router_logits=True` is handed to the model. It does so
in the forward pass alone, not where a layer is recomputed, and the recorded tensors carry gradients either way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wishbone.data.batch import PreferenceBatch
from wishbone.ops.router_sums import router_sums
from wishbone.ops.to_device import to_device


class RowRouting:
    """Takes the router logits of one row and sums them up by group.

    Args:
        batch: the row.
        groups: the group of each pair of the row; groups are counted from 0.
        top_k: experts that are chosen for a token.

    Attributes:
        chosen, probable: sums over the row's tokens and all layers, [groups, experts], float64; `probable` has
            gradients. They are there once the row has run.
        layers: how many layers of the model have a router.
    """

    chosen: Tensor
    probable: Tensor

    def __init__(self, batch: PreferenceBatch, groups: Sequence[int], top_k: int) -> None:
        self._weights = token_weights(batch, groups)
        self._top_k = top_k
        self.layers = 0

    def take(self, router_logits: Sequence[Tensor] | Tensor) -> None:
        """Add up the logits of all layers, [tokens, experts] each."""
        device = self._weights.device
        stacked = (
            router_logits.to(device)
            if isinstance(router_logits, Tensor)
            else torch.stack([logits.to(device) for logits in router_logits])
        )
        self.chosen, self.probable = router_sums(stacked, self._weights, self._top_k)
        self.layers = stacked.shape[0]


def token_weights(batch: PreferenceBatch, groups: Sequence[int]) -> Tensor:
    """Return in how many sequences of each group every token of a row lies, [tokens, groups], float64; 0 for padding.

    Args:
        batch: the row.
        groups: the group of each of its pairs.
    """
    weights = torch.zeros(batch.tokens, max(groups) + 1, dtype=torch.float64)
    for pair, start, stop, sequences in batch.spans():
        weights[start:stop, groups[pair]] = sequences
    return to_device(weights, batch.input_ids.device)
