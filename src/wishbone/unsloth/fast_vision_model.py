"""`FastVisionModel`: Unsloth's interface to models that read images.

`from_pretrained` takes what `FastLanguageModel.from_pretrained` does and returns the model's processor, with which
`DPOTrainer` reads rows with images. `get_peft_model` chooses layers by what they are: of the vision tower or of the
language model, in attention or in an MLP.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from wishbone.errors import RequestError
from wishbone.fused.parts import part_of, text_layers
from wishbone.model.adapter import ALL_LINEAR, linear_layers
from wishbone.unsloth.arguments import ADAPTER_IGNORED, LOADING_IGNORED, LORA_FIELDS
from wishbone.unsloth.call_arguments import foreign_signature
from wishbone.unsloth.fast_language_model import FastLanguageModel
from wishbone.unsloth.loading import load_for_training
from wishbone.unsloth.modes import for_inference, for_training

IGNORED = {
    "auto_model": "the class is transformers' own for the model",
    "whisper_language": "models of speech are not trained",
    "whisper_task": "models of speech are not trained",
    "unsloth_force_compile": "nothing is compiled",
}
ATTENTION = frozenset({"attention", "recurrence"})


class FastVisionModel:
    """Loads models that read images and adds adapters to them, with Unsloth's arguments."""

    @staticmethod
    @foreign_signature(ignored=LOADING_IGNORED | IGNORED)
    def from_pretrained(
        model_name: str | os.PathLike[str] = "unsloth/Llama-3.2-11B-Vision-Instruct",
        max_seq_length: int | None = 2048,
        dtype: str | torch.dtype | None = None,
        load_in_4bit: bool = True,
        load_in_8bit: bool = False,
        load_in_16bit: bool = False,
        full_finetuning: bool = False,
        token: str | None = None,
        device_map: Any = "sequential",
        rope_scaling: Any = None,
        fix_tokenizer: bool = True,
        trust_remote_code: bool = False,
        use_gradient_checkpointing: bool | str = "unsloth",
        resize_model_vocab: int | None = None,
        revision: str | None = None,
        return_logits: bool = False,
        fullgraph: bool = True,
        use_exact_model_name: bool = False,
        offload_embedding: bool | str = False,
        float32_mixed_precision: bool | None = None,
        load_in_fp8: bool | str = False,
        load_in_rotated_int8: bool = False,
        *,
        given: frozenset[str],
    ) -> tuple[PreTrainedModel | PeftModel, ProcessorMixin]:
        """Load a model that reads images, or an adapter on its base model to train further, and its processor.

        Arguments and errors are those of `FastLanguageModel.from_pretrained`.
        """
        return load_for_training(**locals(), images=True)

    @staticmethod
    @foreign_signature(ignored=ADAPTER_IGNORED, further=LORA_FIELDS)
    def get_peft_model(
        model: Any,
        r: int = 16,
        target_modules: str | Sequence[str] | None = None,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        bias: Literal["none", "all", "lora_only"] = "none",
        finetune_vision_layers: bool = True,
        finetune_language_layers: bool = True,
        finetune_attention_modules: bool = True,
        finetune_mlp_modules: bool = True,
        layers_to_transform: int | Sequence[int] | None = None,
        layers_pattern: str | Sequence[str] | None = None,
        use_gradient_checkpointing: bool | str = "unsloth",
        random_state: int = 3407,
        max_seq_length: int = 2048,
        use_rslora: bool = False,
        modules_to_save: str | Sequence[str] | None = None,
        init_lora_weights: bool | str = True,
        loftq_config: Mapping[str, Any] | Any | None = {},  # noqa: B006 (Unsloth's default; never changed)
        task_type: str = "CAUSAL_LM",
        temporary_location: str = "_unsloth_temporary_saved_buffers",
        qat_scheme: str | None = None,
        target_parameters: Sequence[str] | None = None,
        ensure_weight_tying: bool = False,
        *,
        given: frozenset[str],
        **further: Any,
    ) -> PreTrainedModel | PeftModel:
        """Freeze the model and add a float32 LoRA adapter to the layers that are asked for.

        Args:
            model: as `from_pretrained` returned it.
            target_modules: None or "all-linear": all layers that the four following arguments choose; endings of module
                names: those of them; a regular expression: what it matches, and the four arguments do nothing.
            finetune_vision_layers: whether the tower's layers get an adapter, and the projection behind it.
            finetune_language_layers: whether those of the language model do.
            finetune_attention_modules, finetune_mlp_modules: which of their linear layers do; the projection behind the
                tower is one of the MLPs.

        The other arguments and the errors are those of `FastLanguageModel.get_peft_model`.
        """
        everything = target_modules is None or target_modules == ALL_LINEAR
        if everything or not isinstance(target_modules, str):
            chosen = chosen_layers(
                model,
                vision=finetune_vision_layers,
                language=finetune_language_layers,
                attention=finetune_attention_modules,
                mlp=finetune_mlp_modules,
            )
            ends = [] if everything else [str(name) for name in target_modules or ()]
            names = [name for name in chosen if not ends or any(f".{name}".endswith(f".{end}") for end in ends)]
            if not names:
                raise RequestError(
                    "no linear layer is chosen: set finetune_vision_layers or finetune_language_layers, and "
                    "finetune_attention_modules or finetune_mlp_modules"
                    + (f"; target_modules {', '.join(ends)} are in none of those that are" if ends else "")
                )
            target_modules = "|".join(re.escape(name) for name in names)
        return FastLanguageModel.get_peft_model(
            model,
            r=r,
            target_modules=target_modules,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            bias=bias,
            layers_to_transform=layers_to_transform,
            layers_pattern=layers_pattern,
            use_gradient_checkpointing=use_gradient_checkpointing,
            random_state=random_state,
            max_seq_length=max_seq_length,
            use_rslora=use_rslora,
            modules_to_save=modules_to_save,
            init_lora_weights=init_lora_weights,
            loftq_config=loftq_config,
            target_parameters=target_parameters,
            ensure_weight_tying=ensure_weight_tying,
            **further,
        )

    for_inference = staticmethod(for_inference)
    for_training = staticmethod(for_training)


def chosen_layers(model: Any, *, vision: bool, language: bool, attention: bool, mlp: bool) -> list[str]:
    """Return the names of the linear layers of a model's tower and language model that are asked for, without heads.

    Args:
        model: with or without an adapter.
        vision: whether layers outside of the language model are.
        language: whether its own are.
        attention: whether those in attention and in recurrent layers are.
        mlp: whether those in MLPs are, and those outside of both.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    text = {id(module) for module in text_layers(base)[1].modules()}
    head = base.get_output_embeddings()
    in_attention = {
        id(inner) for module in base.modules() if part_of(module) in ATTENTION for inner in module.modules()
    }
    found = []
    for name, module in linear_layers(base).items():
        if module is head:
            continue
        of_text, attends = id(module) in text, id(module) in in_attention
        if (language if of_text else vision) and (attention if attends else mlp):
            found.append(name)
    return found
