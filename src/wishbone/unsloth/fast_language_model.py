"""`FastLanguageModel`: Unsloth's interface to load models and to add adapters.

Parameters have the names, the order and the defaults of Unsloth 2026.10. Each does what Unsloth documents, or one
warning says that it does nothing here, or it is refused. The returned model is of transformers' own class (PEFT's, with
an adapter), with methods to merge, save and publish itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wishbone.errors import RequestError
from wishbone.model.adapter import add_adapter
from wishbone.model.device import choose_device
from wishbone.model.quantization import is_quantized
from wishbone.policy.activations import choose_activations
from wishbone.unsloth.arguments import (
    ADAPTER_IGNORED,
    LOADING_IGNORED,
    LORA_FIELDS,
    TARGET_MODULES,
    layers_of,
    refuse_other_adapter,
    targets_of,
    treatment_of,
)
from wishbone.unsloth.call_arguments import foreign_signature
from wishbone.unsloth.loading import equip, load_for_training
from wishbone.unsloth.modes import for_inference, for_training

logger = logging.getLogger(__name__)


class FastLanguageModel:
    """Loads models and adds adapters to them, with Unsloth's arguments."""

    @staticmethod
    @foreign_signature(ignored=LOADING_IGNORED)
    def from_pretrained(
        model_name: str | os.PathLike[str] = "unsloth/Llama-3.2-1B-Instruct",
        max_seq_length: int | None = 2048,
        dtype: str | torch.dtype | None = None,
        load_in_4bit: bool = True,
        load_in_8bit: bool = False,
        load_in_16bit: bool = False,
        full_finetuning: bool = False,
        token: str | None = None,
        device_map: Any = "sequential",
        device_map_planner_kwargs: Any = None,
        rope_scaling: Any = None,
        fix_tokenizer: bool = True,
        trust_remote_code: bool = False,
        use_gradient_checkpointing: bool | str = "unsloth",
        resize_model_vocab: int | None = None,
        revision: str | None = None,
        use_exact_model_name: bool = False,
        offload_embedding: bool | str = "auto",
        float32_mixed_precision: bool | None = None,
        fast_inference: bool = False,
        gpu_memory_utilization: float = 0.5,
        float8_kv_cache: bool = False,
        random_state: int = 3407,
        max_lora_rank: int = 64,
        disable_log_stats: bool = True,
        qat_scheme: str | None = None,
        load_in_fp8: bool | str = False,
        unsloth_tiled_mlp: bool | str = False,
        text_only: bool = False,
        load_in_rotated_int8: bool = False,
        *,
        given: frozenset[str],
    ) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
        """Load a model, or an adapter on its base model to train further, and its tokenizer.

        Args:
            model_name: a hub id, a directory, a .gguf file, the embedded model, or an adapter (directory or hub id).
            max_seq_length: noted as `model.max_seq_length`; None is the model's own limit. Truncation is `max_length`
                of the trainer's arguments.
            dtype: of the weights that are not quantized; None is bfloat16 on GPUs that have it, float16 on older ones,
                float32 on the CPU.
            load_in_4bit: NF4 through bitsandbytes; where that cannot be, 16 bits, and one warning.
            load_in_8bit, load_in_16bit, full_finetuning: each of these, given alone, replaces the 4 bits.
            load_in_fp8: replaces them too. 16-bit weights get one scale a row, also for "block"; a checkpoint in FP8
                keeps its own scales.
            load_in_rotated_int8: replaces them too: int8 products after a rotation, on GPUs since Turing. Unsloth has
                no such form; `load_in_8bit` is LLM.int8.
            use_gradient_checkpointing: "unsloth": recompute, inputs of layers wait in host memory; True: recompute;
                False: keep.
            resize_model_vocab: resize the embeddings to this many rows.
            offload_embedding: True keeps the input embedding in host memory; "auto" and False leave it with the model.
            float32_mixed_precision: with full_finetuning, load float32 weights.

        Raises:
            RequestError: arguments that contradict each other, all at once, or as `load_model` and `load_adapter`.
        """
        return load_for_training(**locals(), images=False)

    @staticmethod
    @foreign_signature(ignored=ADAPTER_IGNORED, further=LORA_FIELDS)
    def get_peft_model(
        model: Any,
        r: int = 16,
        target_modules: str | Sequence[str] | None = TARGET_MODULES,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        bias: Literal["none", "all", "lora_only"] = "none",
        layers_to_transform: int | Sequence[int] | None = None,
        layers_pattern: str | Sequence[str] | None = None,
        finetune_last_n_layers: int | None = None,
        use_gradient_checkpointing: bool | str = "unsloth",
        random_state: int = 3407,
        max_seq_length: int = 2048,
        use_rslora: bool = False,
        modules_to_save: str | Sequence[str] | None = None,
        init_lora_weights: bool | str = True,
        loftq_config: Mapping[str, Any] | Any | None = {},  # noqa: B006 (Unsloth's default; never changed)
        temporary_location: str = "_unsloth_temporary_saved_buffers",
        qat_scheme: str | None = None,
        target_parameters: Sequence[str] | None = None,
        ensure_weight_tying: bool | None = None,
        offload_layers: Any = None,
        checkpoint_skip_layers: int = 0,
        *,
        given: frozenset[str],
        **further: Any,
    ) -> PreTrainedModel | PeftModel:
        """Freeze the model and add a float32 LoRA adapter to it.

        Args:
            model: as `from_pretrained` returned it. A model that is trained in full is returned unchanged, and so is
                one that already has this adapter.
            r, lora_alpha, lora_dropout, bias, layers_to_transform, layers_pattern, use_rslora, modules_to_save,
                init_lora_weights, target_parameters, ensure_weight_tying: as PEFT's `LoraConfig` takes them.
            target_modules: endings of module names, "all-linear" (None is the same) or a regular expression;
                `embed_tokens` and `lm_head` are trained whole, as `modules_to_save`.
            finetune_last_n_layers: add the adapter to the last so many layers.
            random_state: seed of the adapter's first values; the global random state stays as it was.
            further: other fields of `LoraConfig`.

        Raises:
            RequestError: impossible values, all at once, or the model has another adapter.
        """
        treatment = treatment_of(use_gradient_checkpointing)
        if not isinstance(random_state, int):
            raise RequestError(f"random_state is {random_state!r}; give a whole number, the seed of the adapter")
        if getattr(model, "full_finetuning", False):
            logger.warning("The model is trained in full, so get_peft_model adds nothing.")
            choose_activations(model, treatment)
            return model
        layers = layers_of(model, layers_to_transform, finetune_last_n_layers)
        by_endings = target_modules is not None and not isinstance(target_modules, str)
        targets, saved = targets_of(
            model, target_modules, modules_to_save, None if by_endings else layers, layers_pattern
        )
        if loftq_config and init_lora_weights != "loftq":
            logger.warning("loftq_config changes nothing without init_lora_weights='loftq'.")
        settings: dict[str, Any] = {
            "bias": bias,
            "layers_to_transform": layers if by_endings else None,
            "layers_pattern": layers_pattern if by_endings or layers is None else None,
            "use_rslora": use_rslora,
            "modules_to_save": saved,
            "init_lora_weights": init_lora_weights,
            "target_parameters": list(target_parameters) if target_parameters else None,
            "ensure_weight_tying": bool(ensure_weight_tying),
            **({"loftq_config": dict(loftq_config)} if loftq_config else {}),
            **further,
        }
        wanted = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "target_modules": targets, **settings}
        if isinstance(model, PeftModel):
            refuse_other_adapter(model, wanted)
            choose_activations(model, treatment)
            return model
        if init_lora_weights == "loftq" and is_quantized(model):
            raise RequestError(
                "init_lora_weights='loftq' quantizes 16-bit weights itself, and the model's are quantized already; "
                "load it with load_in_4bit=False, or leave init_lora_weights out"
            )
        adapted = add_adapter(
            model,
            seed=random_state,
            rank=r,
            alpha=lora_alpha,
            dropout=float(lora_dropout),
            target_modules=targets,
            **settings,
        )
        adapted.train()
        limit = getattr(model, "max_seq_length", max_seq_length)
        equip(adapted, getattr(model, "saved_tokenizer", None), limit, treatment)
        return adapted

    for_inference = staticmethod(for_inference)
    for_training = staticmethod(for_training)


def is_bfloat16_supported() -> bool:
    """Return whether there is a GPU with arithmetic in bfloat16; False without a GPU."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability(choose_device(None)) >= (8, 0)
