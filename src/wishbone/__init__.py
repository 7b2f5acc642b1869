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

_OF_OTHERS = {
    "FastModel": "FastLanguageModel loads models of text, FastVisionModel those that read images",
    "FastTextModel": "FastLanguageModel loads models of text",
    "PatchORPOTrainer": "PatchDPOTrainer() and loss_type='orpo' train with ORPO",
    "PatchKTOTrainer": "KTO learns from single answers; loss_type='bco_pair' is the nearest for pairs",
    "ORPOTrainer": "DPOTrainer with loss_type='orpo' trains with ORPO",
    "ORPOConfig": "DPOConfig with loss_type='orpo'",
    "CPOConfig": "DPOConfig with loss_type='cpo' or 'simpo'",
    "PatchFastRL": "rewards that come during training are not what it learns from; PatchDPOTrainer() is for pairs",
    "CPOTrainer": "DPOTrainer with loss_type='cpo' or 'simpo' trains with CPO or SimPO",
    "UnslothTrainer": "DPOTrainer trains; the rate of embeddings is that of the rest",
    "UnslothTrainingArguments": "DPOConfig has the settings; there is no rate for embeddings alone",
    "is_bf16_supported": "it is called is_bfloat16_supported",
    "unsloth_train": "call trainer.train()",
    "add_new_tokens": "tokenizer.add_tokens(...), and resize_model_vocab=len(tokenizer) of from_pretrained",
    "standardize_sharegpt": "pairs in ShareGPT's layout are read as they are",
    "get_chat_template": "the tokenizer's own chat template is used; tokenizer.chat_template = ... changes it",
}
"""Names that code for Unsloth or TRL imports and that are not here, and what to write instead."""
_OF_TRL = {
    "BEMACallback", "DatasetMixtureConfig", "DistillationConfig", "DistillationTrainer", "GRPOConfig",
    "GRPOTrainer", "KTOConfig", "KTOTrainer", "LogCompletionsCallback", "ModelConfig", "RewardConfig",
    "RewardTrainer", "RichProgressCallback", "RLOOConfig", "RLOOTrainer", "ScriptArguments", "SFTConfig",
    "SFTTrainer", "SyncRefModelCallback", "TrlParser", "WeaveCallback", "add_response_schema",
    "apply_chat_template", "clone_chat_template", "create_reference_model", "extract_prompt", "get_dataset",
    "get_peft_config", "get_quantization_config", "get_training_chat_template", "init_zero_verbose",
    "is_conversational", "is_conversational_from_value", "maybe_apply_chat_template", "maybe_convert_to_chatml",
    "maybe_extract_prompt", "maybe_unpair_preference_dataset", "pack_dataset", "prepare_multimodal_messages",
    "supports_tool_calling", "unpair_preference_dataset",
}  # fmt: skip
"""Names that scripts import from TRL beside `DPOConfig` and `DPOTrainer`."""
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
    instead = _OF_OTHERS.get(name) or (f"from trl import {name}" if name in _OF_TRL else None)
    if instead:
        raise ImportError(f"wishbone has no {name}: {instead}")  # `from ... import` hides the text of other errors
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
