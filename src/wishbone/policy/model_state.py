"""The state that a model's Python code reads in a pass: addresses of tensors, `requires_grad`, adapters, hooks.

Two passes with the same state launch the same kernels for rows of the same length. The values of tensors are not part
of the state: kernels read those themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

LIBRARIES = ("transformers", "peft", "accelerate")
"""Libraries whose hooks do nothing that is not recorded with the pass, such as making embeddings require gradients."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class ModelState:
    """Reads the state of one model.

    Args:
        model: its modules must stay the same objects.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [vars(module) for module in model.modules()]
        self._model = model
        self._tensors = [own[name] for own in modules for name in ("_parameters", "_buffers") if own[name]]
        self._hooks = [own[name] for own in modules for name in HOOKS]
        self._adapted = [vars(m) for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]

    def read(self) -> tuple[Any, ...]:
        """Return a value that is equal at two times only if the state was the same at both."""
        tensors = [
            None if tensor is None else (tensor.data_ptr(), tensor.requires_grad)
            for found in self._tensors
            for tensor in found.values()
        ]
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        hooks = sum(map(len, self._hooks))
        return self._model.training, autocast, hooks, tensors, list(map(_adapters_on, self._adapted))

    def hooks_of_others(self) -> bool:
        """Return whether modules have hooks of the user, which a replayed pass would not call."""
        hooks = [hook for found in self._hooks for hook in found.values()]
        return any(str(getattr(hook, "__module__", "")).partition(".")[0] not in LIBRARIES for hook in hooks)


def _adapters_on(own: dict[str, Any]) -> tuple[Any, ...]:
    """Which adapters are on in a layer with the attributes `own`, and how they are scaled."""
    active, merged, scaling = own.get("_active_adapter"), own.get("merged_adapters", ()), own.get("scaling", {})
    return own.get("_disable_adapters"), str(active), len(merged), *scaling.values()
