"""Several processes that share out the pairs of each optimizer step: the run is the one of a single process.

accelerate gives each process other batches, so a step has as many more pairs as there are processes, and where batches
do not divide, the end of an epoch is filled with pairs of its beginning. Here every process reads all batches in the
order of a single process, computes its share of each step (`engine/sharing.py`), and the shares are added up. Pairs are
token ids, so reading all of them costs little.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor

from wishbone.errors import RequestError

OWN_BATCHES = (
    "There each of the %d processes adds a batch of its own to a step, so a step has as many times more pairs as there "
    "are processes. Divide gradient_accumulation by their number to keep the size of a step."
)
"""The warning where a run that was to share its steps takes TRL's own path."""

WAITING = (
    "The loss couples the pairs of a batch, so batches are not divided: with %d in a step, some of the %d processes "
    "wait. More and smaller batches (gradient_accumulation) would keep all at work, and are another loss."
)
"""The warning where some processes have nothing to compute."""


def read_every_batch(loader: Any) -> None:
    """Have accelerate's loader of one process yield the batches of all of them, in the order of a single process.

    Raises:
        RequestError: the data is a stream, whose rows accelerate cuts.
    """
    sampler = loader.batch_sampler
    if not isinstance(sampler, BatchSamplerShard):
        raise RequestError(
            "shared_steps: the training data is a stream, of which each process reads a part; load it as a whole, or "
            "set shared_steps=False, and each process adds a batch of its own to a step"
        )
    sampler.num_processes, sampler.process_index, sampler.even_batches = 1, 0, False


def sum_of_losses(loss: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the sum of a scalar over processes, float64 in all of them, whatever a process without pairs has."""
    return accelerator.reduce(loss.detach().to(accelerator.device, torch.float64), "sum")  # type: ignore[no-any-return]
