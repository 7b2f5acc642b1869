"""Adapters on disk: a directory with adapter_config.json and adapter_model.safetensors, as PEFT writes it.

All that an adapter says of its base model is the name. PEFT loads the tensors that fit and says little about the rest,
so with another base half of the adapter would be random. Here names and shapes are compared first, and an adapter that
does not fit is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wishbone.errors import RequestError, counted, counted_of, one_line, some_of
from wishbone.model.atomic_directory import beside
from wishbone.model.hub import find_on_hub
from wishbone.model.merged_weights import active_adapters
from wishbone.paths import user_path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_directory(name: str, revision: str | None = None, token: str | None = None) -> Path | None:
    """Return the directory of the adapter `name`, downloaded if it is a hub id; None if `name` is a model.

    Raises:
        RequestError: it holds an adapter and a model, or an adapter without safetensors.
    """
    path = user_path(name)
    if path.exists():
        files = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    elif "/" in name and not name.startswith((".", "/", "~")):
        found = find_on_hub(name, revision, instead="name a model or an adapter that is there", token=token)
        path, files = (found, [e.name for e in found.iterdir()]) if isinstance(found, Path) else (path, found)
    else:
        files = []
    if CONFIG not in files:
        return None
    if "config.json" in files:
        raise RequestError(f"{name!r} holds an adapter and a model; move one of the two to a directory of its own")
    if WEIGHTS not in files:
        raise RequestError(f"{name!r} holds an adapter without {WEIGHTS}; save it again with PEFT, as safetensors")
    if path.is_dir():
        return path
    return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=["*.json", "*.jinja", WEIGHTS]))


def adapter_config(directory: Path) -> PeftConfig:
    """Return the configuration of a saved adapter, which says what its base model is.

    Raises:
        RequestError: it cannot be read, or names no base model.
    """
    config = _saved_config(directory)
    if not config.base_model_name_or_path:
        raise RequestError(f"{str(directory / CONFIG)!r} names no base model; set base_model_name_or_path in it")
    return config


def _saved_config(directory: Path) -> PeftConfig:
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"{str(directory / CONFIG)!r} cannot be read ({one_line(error)}); save it again") from error
    if getattr(config, "megatron_config", None):  # PEFT imports the module that the file names
        raise RequestError(
            f"{str(directory / CONFIG)!r} has a megatron_config, which would import code that it names; set it to null"
        )
    return config


def load_adapter(base: PreTrainedModel, directory: Path, *, trainable: bool = True) -> PeftModel:
    """Put a saved adapter on its base model, which is changed in place.

    Raises:
        RequestError: the adapter is damaged, holds NaN or infinity, would import code, or was made for another model:
            names or shapes of its tensors differ.
    """
    config = _saved_config(directory)
    config.inference_mode = not trainable
    config.base_model_name_or_path = base.name_or_path or None  # as PEFT sets it, which warns where it was another
    if not (directory / WEIGHTS).is_file():
        raise RequestError(f"{str(directory)!r} has no {WEIGHTS}; save the adapter again, as safetensors")
    try:
        with safe_open(directory / WEIGHTS, "pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no iterator)
        known = {name: tuple(weight.shape) for name, weight in base.state_dict().items()}
        model = get_peft_model(base, config)
    except SafetensorError as error:
        raise RequestError(f"{str(directory / WEIGHTS)!r} is damaged ({error}); copy or save it again") from error
    except ValueError as error:
        raise RequestError(
            f"the adapter in {str(directory)!r} does not fit {_name(base)}: {one_line(error)}"
        ) from error
    expected = {key: tuple(v.shape) for key, v in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    extra = {key for key in found.keys() - expected.keys() if known.get(_base_key(key)) != found[key]}
    problems = [
        f"{what}: {counted(len(keys), 'tensor')} ({some_of(keys)})"
        for what, keys in (
            ("of the adapter, without a place in the model", sorted(extra)),
            ("missing, though the model needs them", sorted(expected.keys() - found.keys())),
            (
                "of another shape",
                [
                    f"{key}: {found[key]} instead of {expected[key]}"
                    for key in sorted(expected.keys() & found.keys())
                    if found[key] != expected[key]
                ],
            ),
        )
        if keys
    ]
    if problems:
        raise RequestError(
            f"the adapter in {str(directory)!r} was made for another base than {_name(base)}: {'; '.join(problems)}; "
            f"set base_model_name_or_path in its {CONFIG} to the model that it was trained on"
        )
    weights = load_file(directory / WEIGHTS)
    broken = sorted(key for key, tensor in weights.items() if not tensor.float().isfinite().all())
    if broken:
        raise RequestError(
            f"{counted_of(len(broken), len(weights), 'tensor', 'of', 'of')} the adapter in {str(directory)!r} "
            f"{'holds' if len(broken) == 1 else 'hold'} NaN or infinite values "
            f"({some_of(broken)}); the file is damaged or the training diverged: take another copy or an earlier "
            "checkpoint"
        )
    set_peft_model_state_dict(model, weights)
    return model


def save_adapter(model: nn.Module, directory: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the active adapter in PEFT's format, with the tokenizer.

    Raises:
        RequestError: there is no adapter, it has NaN or infinite values, or the directory holds a model.
    """
    target = user_path(directory).absolute()
    problems = not_finite(model)
    if not isinstance(model, PeftModel):
        problems.append("the model is not a PEFT model; save the adapter from the PEFT model around it (trainer.model)")
    if (target / "config.json").exists():
        problems.append(f"{str(target)!r} holds a model; name a directory of its own for the adapter")
    if problems:
        raise RequestError(problems)
    assert isinstance(model, PeftModel)
    with beside(target) as temporary:
        model.save_pretrained(temporary, selected_adapters=[model.active_adapter])
        tokenizer.save_pretrained(temporary)


def name_base(directory: Path, name: str, revision: str | None = None) -> None:
    """Let a saved adapter name its base model as a person named it, and not by where this machine keeps a copy.

    PEFT writes the directory that the weights were read from, which for an embedded model or a GGUF file is a cache.
    """
    path = directory / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    former = config.get("base_model_name_or_path")
    if former == name and config.get("revision") == revision:
        return
    named = config | {"base_model_name_or_path": name, "revision": revision}
    path.write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
    card = directory / "README.md"
    if former and card.is_file():
        card.write_text(card.read_text(encoding="utf-8").replace(former, name), encoding="utf-8")


def not_finite(model: nn.Module) -> list[str]:
    """Return one problem with the names of the tensors of the active adapter that hold NaN or infinity, if any do."""
    active = set(active_adapters(model))
    adapter = {
        name: tensor
        for name, tensor in model.named_parameters()
        if active & set(name.split(".")) and (".lora_" in name or ".modules_to_save." in name)
    }
    broken = [name for name, tensor in adapter.items() if not torch.isfinite(tensor).all()]
    if not broken:
        return []
    return [
        f"{len(broken)} of {len(adapter)} adapter tensors hold NaN or infinite values ({some_of(broken)}), which would "
        "spoil any model; go back to an earlier checkpoint, and train with a lower learning rate"
    ]


def _base_key(key: str) -> str:
    """Return the name in the base model of a weight that PEFT saved with an adapter (embeddings that changed)."""
    return key.removeprefix("base_model.model.").replace(".base_layer", "")


def _name(base: Any) -> str:
    return f"{base.name_or_path!r} ({base.config.model_type})" if base.name_or_path else f"a {base.config.model_type}"
