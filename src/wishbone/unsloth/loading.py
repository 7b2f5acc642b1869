"""Loading a model as Unsloth's classes do: a language model with its tokenizer, or one of images with its processor."""

from __future__ import annotations

import logging
import os
from types import MethodType
from typing import Any

import torch

from wishbone.engine.execution import Treatment
from wishbone.errors import RequestError
from wishbone.model.checkpoint import TOKENIZER_FILES
from wishbone.model.host_embedding import keep_embedding_on_host
from wishbone.model.load import load_model, load_tokenizer
from wishbone.model.quantization import is_quantized, quantization_obstacle
from wishbone.model.saved_adapter import adapter_config, adapter_directory, load_adapter
from wishbone.policy.activations import choose_activations
from wishbone.unsloth.arguments import (
    bits_of,
    device_of,
    refuse_other_values,
    refuse_smaller_vocabulary,
    treatment_of,
)
from wishbone.unsloth.modes import for_inference, for_training
from wishbone.unsloth.saving import attach_saving

logger = logging.getLogger(__name__)


def load_for_training(
    *,
    model_name: str | os.PathLike[str],
    max_seq_length: int | None,
    dtype: str | torch.dtype | None,
    load_in_4bit: bool,
    load_in_8bit: bool,
    load_in_16bit: bool,
    full_finetuning: bool,
    token: str | None,
    device_map: Any,
    trust_remote_code: bool,
    use_gradient_checkpointing: bool | str,
    resize_model_vocab: int | None,
    revision: str | None,
    offload_embedding: bool | str,
    float32_mixed_precision: bool | None,
    load_in_fp8: bool | str,
    load_in_rotated_int8: bool = False,
    given: frozenset[str],
    images: bool,
    **_without_effect: Any,
) -> tuple[Any, Any]:
    """Return a model with Unsloth's attributes and methods, and its tokenizer or processor.

    Args:
        images: whether it is a model of images, which comes with its processor.
        given: names of the arguments that the caller gave.

    The other arguments and the errors are those of `FastLanguageModel.from_pretrained`.
    """
    model_name = os.fspath(model_name) if isinstance(model_name, os.PathLike) else model_name
    refuse_other_values(locals())
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
        raise RequestError(f"{model_name!r} is an adapter, and full_finetuning trains no adapter; drop one of the two")
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
        images=images,
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
        refuse_smaller_vocabulary(resize_model_vocab, tokenizer)
        model.resize_token_embeddings(resize_model_vocab)
    if offload_embedding is True:
        keep_embedding_on_host(model)
    if adapter:
        model = load_adapter(model, adapter)
        if not images and not TOKENIZER_FILES.isdisjoint(entry.name for entry in adapter.iterdir()):
            tokenizer = load_tokenizer(str(adapter), trust_remote_code=trust_remote_code)
    model.train(full_finetuning or adapter is not None)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    equip(model, tokenizer, limit if max_seq_length is None else max_seq_length, treatment)
    model.full_finetuning = full_finetuning
    return model, tokenizer


def equip(model: Any, tokenizer: Any, max_seq_length: int | None, treatment: Treatment) -> None:
    """Give the model the attributes and methods that Unsloth's models have."""
    model.max_seq_length = max_seq_length
    choose_activations(model, treatment)
    attach_saving(model, tokenizer)
    model.for_inference = MethodType(for_inference, model)
    model.for_training = MethodType(for_training, model)
