"""Copies from the host to a device that do not make the host wait until the device has done its work."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a host tensor on `device`; the copy to a GPU runs after the work that was queued before it."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
