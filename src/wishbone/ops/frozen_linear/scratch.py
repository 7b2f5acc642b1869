"""One buffer a device for what lives only until the next matrix product: dequantized or transposed weights.

Products of one device run one after another on its current stream, so the next user may write over the last one's data
as soon as its product is queued. The buffer grows to the largest weight of a model and stays.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_held: dict[torch.device, Tensor] = {}


def scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return uninitialized memory of this shape, valid until the next call for the same device."""
    size = math.prod(shape) * dtype.itemsize
    held = _held.get(device)
    if held is None or held.numel() < size:
        _held.pop(device, None)
        with torch.inference_mode(False):  # what is made inside of it may not be written to outside
            held = torch.empty(size, dtype=torch.uint8, device=device)
        _held[device] = held
    return held[:size].view(dtype).view(shape)


def held_scratch(device: torch.device) -> Tensor | None:
    """Return a device's buffer, for who needs it to stay where it is; None if there is none yet."""
    return _held.get(device)


def release_scratch() -> None:
    """Give the buffers of all devices back."""
    _held.clear()
