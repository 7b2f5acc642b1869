"""The calls of a sharded model's root and head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wishbone.policy.sharded import _called


def test_a_root_is_called_with_an_argument() -> None:
    """FSDP of torch 2.11 moves a root's arguments to the GPU, and raises IndexError where there are none."""
    module, seen = nn.Linear(1, 1), list[Any]()
    module.register_forward_pre_hook(lambda _, args: seen.append(args))
    assert _called(module, lambda: torch.ones(2)).tolist() == [1, 1]
    assert seen == [(None,)] and "forward" not in vars(module)
