"""Which rows go to which expert: choices of tokens, sorted by expert, so that each expert's rows lie together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KEYS = (torch.int8, torch.int16, torch.int32)
"""Dtypes that numbers of experts are sorted in: a GPU sorts by 8 bits at a time."""


@dataclass(frozen=True)
class Routing:
    """The choices of T tokens, k each, as S = T k rows sorted by expert; rows of one expert stay in their order.

    Nothing here waits for the device: how many rows an expert has is known there alone.

    Attributes:
        choice: [S] int64, which choice of the T k each row is.
        token: [S] int64, the token of each row.
        row: [T, k] int64, the row of each choice.
        ends: [experts] int32, where the rows of each expert end, and those of the next begin.
    """

    choice: Tensor
    token: Tensor
    row: Tensor
    ends: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> Routing:
        """Return the routing of tokens to `experts` experts; chosen [T, k] are their numbers."""
        tokens, k = chosen.shape
        keys = chosen.reshape(-1).to(next(dtype for dtype in KEYS if experts - 1 <= torch.iinfo(dtype).max))
        expert, choice = torch.sort(keys, stable=True)
        ends = torch.searchsorted(expert, torch.arange(experts, device=chosen.device, dtype=keys.dtype), right=True)
        row = torch.empty_like(choice)
        row[choice] = torch.arange(tokens * k, device=chosen.device)
        return cls(choice, choice // k, row.view(tokens, k), ends.to(torch.int32))

    @property
    def rows(self) -> int:
        """S."""
        return self.token.shape[0]

    def slices(self) -> list[slice]:
        """Return the rows of each expert; waits for the device."""
        ends = self.ends.tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
