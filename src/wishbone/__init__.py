"""Preference optimization (DPO and its family) that computes each prompt once: exact, fast, light, on GPU and CPU.

Public names load on first use, so that `import wishbone` costs nothing. Before that, memory is settled for training
(`wishbone.model.host_memory`, `device_memory`), which works best before anything else imports torch or uses a GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wishbone.model.device_memory import let_device_memory_grow
from wishbone.model.host_memory import keep_host_memory

if TYPE_CHECKING:
    from wishbone.model.fast_language_model import FastLanguageModel, is_bfloat16_supported
    from wishbone.training.arguments import DPOConfig
    from wishbone.training.patch import PatchDPOTrainer, UnpatchDPOTrainer
    from wishbone.training.run import train
    from wishbone.training.trainer import DPOTrainer

__version__ = "0.1.0"
__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "FastLanguageModel",
    "PatchDPOTrainer",
    "UnpatchDPOTrainer",
    "__version__",
    "is_bfloat16_supported",
    "train",
]

_HOME = {
    "DPOConfig": "wishbone.training.arguments",
    "DPOTrainer": "wishbone.training.trainer",
    "FastLanguageModel": "wishbone.model.fast_language_model",
    "PatchDPOTrainer": "wishbone.training.patch",
    "UnpatchDPOTrainer": "wishbone.training.patch",
    "is_bfloat16_supported": "wishbone.model.fast_language_model",
    "train": "wishbone.training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'wishbone' has no attribute {name!r}")
    keep_host_memory()
    let_device_memory_grow()
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
