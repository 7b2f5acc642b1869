"""What a run reads before it trains: pairs, the model, its reference, its adapter."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel

from wishbone.config.schema import EMBEDDED_MODEL, ModelConfig, RunConfig
from wishbone.model.adapter import ALL_LINEAR, LANGUAGE_LINEAR, lora_config, tower_layers
from wishbone.model.load import load_model, load_tokenizer, read_model_config
from wishbone.paths import user_path
from wishbone.phases import phase
from wishbone.planning.model_files import model_directory
from wishbone.run.prepare_data import prepare_data, processor_of
from wishbone.run.sequence_lengths import check_lengths, this_cpu
from wishbone.run.training_arguments import precomputes_reference

logger = logging.getLogger(__name__)


def load_pairs(config: RunConfig) -> tuple[dict[str, Any], Dataset, Dataset | None, int]:
    """Return the model's config.json, known before its weights are loaded, and what `prepare_data` returns.

    Raises:
        RequestError: as `prepare_data` and `check_lengths`.
    """
    model = config.model
    with phase("pairs", note=_short(config.data.train), own_bars=_may_download(model.name)):
        described = read_model_config(model.name, model.revision, model.trust_remote_code)
        tokenizer = load_tokenizer(model.name, model.revision, model.trust_remote_code)
        train, heldout, dropped = prepare_data(config, tokenizer, processor_of(model, described), _tell)
        check_lengths(config, described, train, None if torch.cuda.is_available() else this_cpu())
    return described, train, heldout, dropped


def _tell(sentence: str) -> None:
    logger.warning("%s.", sentence[0].upper() + sentence[1:])


def load_policy(config: RunConfig, place: dict[str, Any], *, images: bool) -> tuple[PreTrainedModel, Any]:
    """Return the model that learns and its tokenizer, or its processor where pairs have images.

    Args:
        config: of the run.
        place: options of `load_model` for a model that is divided (`loading_place`).
        images: whether pairs have images.
    """
    return _load(config.model, config.model.name, config.model.revision, images=images, **place)


def load_reference(config: RunConfig, place: dict[str, Any], *, images: bool) -> PreTrainedModel | None:
    """Return another model as the reference, or None where it is the one that is trained; arguments as `load_policy`.

    Where all weights of a divided model are trained, TRL would load it once more, whole on a GPU. Pairs with images
    need a copy of it: TRL computes no reference values of them beforehand.
    """
    model = config.model
    if model.reference is not None:
        return _load(model, model.reference, images=images, **place)[0]
    again = (bool(place) or images) and precomputes_reference(config)
    if again and images:
        logger.warning(
            "The model is loaded twice: reference values of pairs with images are not computed before a run, so a copy "
            "of its first weights stays in memory. adapter.method: lora needs none."
        )
    return _load(model, model.name, model.revision, images=images, **place)[0] if again else None


def adapter_of(config: RunConfig, model: PreTrainedModel, *, images: bool) -> LoraConfig:
    """Return the adapter that a run trains on its model; one line in the log where it lies on a vision tower."""
    adapter = config.adapter
    if images and adapter.target_modules == ALL_LINEAR:
        logger.info(
            "Adapters on %d layers of the vision tower, too, as in TRL; adapter.target_modules=%s leaves it as it "
            "is, which takes less memory and time.",
            len(tower_layers(model)),
            LANGUAGE_LINEAR,
        )
    return lora_config(
        model,
        rank=adapter.rank,
        alpha=adapter.alpha,
        dropout=adapter.dropout,
        target_modules=adapter.target_modules,
    )


def _load(
    model: ModelConfig,
    name: str,
    revision: str | None = None,
    *,
    images: bool,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Return the model of that name, in the dtype or quantization of the run, and its tokenizer or processor."""
    with phase("model", note=_short(name), own_bars=_may_download(name)):
        return load_model(
            name,
            dtype=dtype or model.dtype,
            device=device,
            revision=revision,
            trust_remote_code=model.trust_remote_code,
            load_in_4bit=model.quantization == "nf4",
            load_in_fp8=model.quantization == "fp8",
            load_in_rotated_int8=model.quantization == "int8",
            images=images,
        )


def _may_download(name: str) -> bool:
    """Whether a model may come from the hub, whose own bars then show how far the download is."""
    return name != EMBEDDED_MODEL and not user_path(name).exists() and model_directory(name) is None


def _short(name: str) -> str:
    """The last part of a path; another name as it is."""
    return Path(name).name if user_path(name).exists() else name
