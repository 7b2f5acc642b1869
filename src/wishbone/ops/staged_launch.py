"""Launches of kernels with as many pipeline stages as the GPU's shared memory holds.

How much a kernel takes depends on Triton's version, so it is found by trying: once for each kernel, device and sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.runtime.errors import OutOfResources

MOST_STAGES = 3

_fitting: dict[object, int] = {}


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    device: torch.device,
    *arguments: Any,
    num_stages: int = MOST_STAGES,
    **sizes: Any,
) -> None:
    """Run a kernel with the most stages, up to `num_stages`, that fit.

    Args:
        kernel: compiled by `triton.jit`.
        grid: programs along each dimension; nothing runs where one is 0.
        device: of the tensors.
        arguments: of the kernel.
        num_stages: with which it is tried first.
        sizes: its constants, which its shared memory depends on.

    Raises:
        OutOfResources: one stage does not fit either.
    """
    if 0 in grid:
        return
    key = (kernel, device, num_stages, *sizes.items())
    for stages in range(_fitting.get(key, num_stages), 0, -1):
        try:
            kernel[grid](*arguments, num_stages=stages, **sizes)
        except OutOfResources:
            if stages == 1:
                raise
            continue
        _fitting[key] = stages
        return
