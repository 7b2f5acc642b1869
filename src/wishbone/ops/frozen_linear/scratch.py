"""One buffer for each device that holds a weight, dequantized or transposed, until the next matrix product.

The products of a device run one after another on its current stream, so the next weight may overwrite the last one as
soon as the product with that is queued. The buffer grows to the largest weight of a model and stays.
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
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be written to outside of it
            held = torch.empty(size, dtype=torch.uint8, device=device)
        _held[device] = held
    return held[:size].view(dtype).view(shape)


def held_scratch(device: torch.device) -> Tensor | None:
    """Return the buffer of a device, so that a caller can keep it where it is; None if there is none yet."""
    return _held.get(device)
