"""Preference optimization (DPO and its family) that computes each prompt once: exact, fast, light, on GPU and CPU.

Public names load on first use, so that `import wishbone` costs nothing. Before that, memory is settled for training
(`process_memory.py`), which works best before anything else imports torch or uses a GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wishbone.process_logs import hide_kernel_advice, let_first_process_speak
from wishbone.process_memory import keep_host_memory, let_device_memory_grow
from wishbone.process_threads import let_waiting_threads_sleep
from wishbone.version import __version__

if TYPE_CHECKING:
    from wishbone.run.run import train
    from wishbone.trainer.arguments import DPOConfig
    from wishbone.trainer.patch import PatchDPOTrainer, UnpatchDPOTrainer
    from wishbone.trainer.trainer import DPOTrainer
    from wishbone.unsloth.fast_language_model import FastLanguageModel, is_bfloat16_supported
    from wishbone.unsloth.fast_vision_model import FastVisionModel


__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "FastLanguageModel",
    "FastVisionModel",
    "PatchDPOTrainer",
    "UnpatchDPOTrainer",
    "__version__",
    "is_bfloat16_supported",
    "train",
]

_HOME = {
    "DPOConfig": "wishbone.trainer.arguments",
    "DPOTrainer": "wishbone.trainer.trainer",
    "FastLanguageModel": "wishbone.unsloth.fast_language_model",
    "FastVisionModel": "wishbone.unsloth.fast_vision_model",
    "PatchDPOTrainer": "wishbone.trainer.patch",
    "UnpatchDPOTrainer": "wishbone.trainer.patch",
    "is_bfloat16_supported": "wishbone.unsloth.fast_language_model",
    "train": "wishbone.run.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'wishbone' has no attribute {name!r}")
    keep_host_memory()
    let_device_memory_grow()
    let_waiting_threads_sleep()
    hide_kernel_advice()
    let_first_process_speak()
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
