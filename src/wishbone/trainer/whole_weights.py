"""The weights of a sharded model as one process needs them to write files.

accelerate gathers every parameter of a model to save it, 141 GB for an adapter on a 70B model. Here a model with an
adapter gives the adapter alone, tensor by tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.tensor import DTensor


@torch.no_grad()
def whole_weights(model: Any, *, keep: bool, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return weights by their names in the model, whole and on the host; all processes must call.

    Args:
        model: sharded; with PEFT's adapters only these are returned.
        keep: whether this process wants them; the others get none.
        dtype: that floating-point weights become; None: as they are.
    """
    adapters = [f".{name}." for name in model.peft_config] if isinstance(model, PeftModel) else None
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if adapters is not None and not any(adapter in f"{name}." for adapter in adapters):
            continue
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            found[name] = whole.cpu().to(dtype if dtype and whole.is_floating_point() else whole.dtype)
    return found
