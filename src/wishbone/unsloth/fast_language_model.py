"""`FastLanguageModel`: Unsloth's interface to load models and to add adapters.

Parameters have the names, the order and the defaults of Unsloth 2026.10. Each does what Unsloth documents, or one
warning says that it does nothing here, or it is refused. The returned model is of transformers' own class (PEFT's, with
an adapter), with methods to merge, save and publish itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wishbone.engine.execution import Treatment
from wishbone.errors import RequestError
from wishbone.model.adapter import add_adapter
from wishbone.model.checkpoint import TOKENIZER_FILES
from wishbone.model.host_embedding import keep_embedding_on_host
from wishbone.model.load import choose_device, load_model, load_tokenizer
from wishbone.model.quantization import is_quantized, quantization_obstacle
from wishbone.model.saved_adapter import adapter_config, adapter_directory, load_adapter
from wishbone.policy.activations import allow_recompute, choose_activations, chosen_activations
from wishbone.unsloth.arguments import (
    ADAPTER_IGNORED,
    LOADING_IGNORED,
    LORA_FIELDS,
    TARGET_MODULES,
    bits_of,
    device_of,
    layers_of,
    refuse_other_adapter,
    targets_of,
    treatment_of,
)
from wishbone.unsloth.call_arguments import foreign_signature
from wishbone.unsloth.saving import attach_saving

logger = logging.getLogger(__name__)


class FastLanguageModel:
    """Loads models and adds adapters to them, with Unsloth's arguments."""

    @staticmethod
    @foreign_signature(ignored=LOADING_IGNORED)
    def from_pretrained(
        model_name: str = "unsloth/Llama-3.2-1B-Instruct",
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
        treatment = treatment_of(use_gradient_checkpointing)
        device = device_of(device_map)
        values = {
            "load_in_4bit": load_in_4bit,
            "load_in_8bit": load_in_8bit,
            "load_in_16bit": load_in_16bit,
            "load_in_fp8": load_in_fp8,
            "load_in_rotated_int8": load_in_rotated_int8,
        }
        bits = bits_of({name: bool(value) for name, value in values.items()}, given, full_finetuning=full_finetuning)
        if bits == 4 and (obstacle := quantization_obstacle(device)):
            logger.warning("%s is loaded in 16 bits instead of 4: %s.", model_name, obstacle)
            bits = 16
        adapter = adapter_directory(model_name, revision, token)
        if adapter and full_finetuning:
            raise RequestError(
                f"{model_name!r} is an adapter, and full_finetuning trains no adapter; drop one of the two"
            )
        source, source_revision = model_name, revision
        if adapter:
            saved = adapter_config(adapter)
            source, source_revision = str(saved.base_model_name_or_path), saved.revision
        mixed = full_finetuning and float32_mixed_precision
        model: Any
        model, tokenizer = load_model(
            source,
            dtype=torch.float32 if mixed else dtype or "auto",
            revision=source_revision,
            trust_remote_code=trust_remote_code,
            device=device,
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            load_in_fp8=bool(load_in_fp8),
            load_in_rotated_int8=load_in_rotated_int8,
            token=token,
        )
        if full_finetuning and is_quantized(model):
            raise RequestError(
                f"the weights of {model_name!r} are quantized and cannot be trained in full; name the model that they "
                "were made from, or drop full_finetuning"
            )
        if bits == 8:
            logger.warning(
                "LLM.int8 rounds activations too, and how depends on the row they are in, so log-probabilities are not "
                "exact; with load_in_4bit=True they are, in less memory."
            )
        if resize_model_vocab is not None:
            model.resize_token_embeddings(resize_model_vocab)
        if offload_embedding is True:
            keep_embedding_on_host(model)
        if adapter:
            model = load_adapter(model, adapter)
            if not TOKENIZER_FILES.isdisjoint(entry.name for entry in adapter.iterdir()):
                tokenizer = load_tokenizer(str(adapter), trust_remote_code=trust_remote_code)
        model.train(full_finetuning or adapter is not None)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        _equip(model, tokenizer, limit if max_seq_length is None else max_seq_length, treatment)
        model.full_finetuning = full_finetuning
        return model, tokenizer

    @staticmethod
    @foreign_signature(ignored=ADAPTER_IGNORED, further=LORA_FIELDS)
    def get_peft_model(
        model: Any,
        r: int = 16,
        target_modules: str | Sequence[str] = TARGET_MODULES,
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
        modules_to_save: Sequence[str] | None = None,
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
            target_modules: endings of module names, "all-linear" or a regular expression; `embed_tokens` and `lm_head`
                are trained whole, as `modules_to_save`.
            finetune_last_n_layers: add the adapter to the last so many layers.
            random_state: seed of the adapter's first values; the global random state stays as it was.
            further: other fields of `LoraConfig`.

        Raises:
            RequestError: impossible values, all at once, or the model has another adapter.
        """
        treatment = treatment_of(use_gradient_checkpointing)
        if getattr(model, "full_finetuning", False):
            logger.warning("The model is trained in full, so get_peft_model adds nothing.")
            choose_activations(model, treatment)
            return model
        targets, saved = targets_of(model, target_modules, modules_to_save)
        settings: dict[str, Any] = {
            "bias": bias,
            "layers_to_transform": layers_of(model, layers_to_transform, finetune_last_n_layers),
            "layers_pattern": layers_pattern,
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
        _equip(adapted, getattr(model, "saved_tokenizer", None), limit, treatment)
        return adapted

    @staticmethod
    def for_inference(model: Any) -> Any:
        """Prepare the model to generate (evaluation mode, key-value cache, no recomputation) and return it."""
        base = _base(model)
        for module in base.modules():
            if "gradient_checkpointing" in vars(module):
                module.gradient_checkpointing = False
        base.config.use_cache = True
        _pad(model, "left")
        return model.eval()

    @staticmethod
    def for_training(model: Any, use_gradient_checkpointing: bool | str | None = None) -> Any:
        """Prepare the model to train again, with activations treated as before unless given, and return it."""
        base = _base(model)
        if use_gradient_checkpointing is not None:
            choose_activations(model, treatment_of(use_gradient_checkpointing))
        if chosen_activations(model) in ("recompute", "offload"):
            allow_recompute(base)
        base.config.use_cache = False
        _pad(model, "right")
        return model.train()


def is_bfloat16_supported() -> bool:
    """Return whether there is a GPU with arithmetic in bfloat16; False without a GPU."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability(choose_device(None)) >= (8, 0)


def _equip(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, max_seq_length: int | None, treatment: Treatment
) -> None:
    """Give the model the attributes and methods that Unsloth's models have."""
    model.max_seq_length = max_seq_length
    choose_activations(model, treatment)
    attach_saving(model, tokenizer)
    model.for_inference = MethodType(FastLanguageModel.for_inference, model)
    model.for_training = MethodType(FastLanguageModel.for_training, model)


def _base(model: Any) -> Any:
    if not isinstance(model, nn.Module):
        raise RequestError(f"a {type(model).__name__} was given in place of the model; give the model")
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _pad(model: Any, side: str) -> None:
    tokenizer = getattr(model, "saved_tokenizer", None)
    if tokenizer is not None:
        tokenizer.padding_side = side
