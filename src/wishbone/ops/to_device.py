"""Numbers of the host on a device, without the host waiting for it: a GPU that has work goes on."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a host's tensor on `device`; the copy to a GPU starts when the work queued before it is done."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
