"""What Unsloth's arguments mean here, and tables of those that do nothing, with the reason."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel

from wishbone.engine.execution import Treatment
from wishbone.errors import RequestError
from wishbone.model.adapter import ALL_LINEAR, linear_layers
from wishbone.model.device import choose_device

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDINGS = ("embed_tokens", "lm_head")
ONE_DEVICE = (None, "sequential", "auto", "balanced", "balanced_low_0", "unsloth")
LOADING_IGNORED = {
    "device_map_planner_kwargs": "the model is on one device",
    "rope_scaling": "position encodings are those of the checkpoint",
    "fix_tokenizer": "the tokenizer is used as it is",
    "fast_inference": "vLLM is not used",
    "gpu_memory_utilization": "vLLM is not used",
    "float8_kv_cache": "vLLM is not used",
    "max_lora_rank": "vLLM is not used",
    "disable_log_stats": "vLLM is not used",
    "qat_scheme": "there is no quantization-aware training",
    "unsloth_tiled_mlp": "rows of a bounded number of tokens serve the same end",
    "attn_implementation": "training chooses its own attention",
    "return_logits": "logits are returned where transformers returns them",
    "fullgraph": "nothing is compiled",
}
ADAPTER_IGNORED = {
    "task_type": "it is CAUSAL_LM",
    "temporary_location": "nothing is put there",
    "qat_scheme": "there is no quantization-aware training",
    "offload_layers": "layers stay on the device",
    "checkpoint_skip_layers": "what fits is kept, row by row",
}
LORA_FIELDS = frozenset(field.name for field in dataclasses.fields(LoraConfig)) - {"task_type"}
TREATMENTS: dict[Any, Treatment] = {
    True: "recompute",
    False: "keep",
    "unsloth": "offload",
    "True": "recompute",
    "False": "keep",
}
SWITCHES = ("load_in_4bit", "load_in_8bit", "load_in_16bit", "load_in_rotated_int8", "full_finetuning")
FP8_FORMS = (None, True, False, "row", "block")

logger = logging.getLogger(__name__)


def treatment_of(asked: bool | str) -> Treatment:
    """Return how activations are treated for a value of `use_gradient_checkpointing`."""
    if not isinstance(asked, int | str) or asked not in TREATMENTS:
        raise RequestError(f"use_gradient_checkpointing {asked!r} is not known; use True, False or 'unsloth'")
    return TREATMENTS[asked]


def device_of(device_map: Any) -> torch.device:
    """Return the device that a `device_map` names; a model is on one device."""
    if isinstance(device_map, dict):
        places = set(device_map.values())
        if len(places) != 1:
            raise RequestError(
                f"device_map puts the model on {len(places)} devices; give one, such as device_map='cuda:0', and train "
                "on several GPUs with one process each"
            )
        device_map = places.pop()
    if device_map in ONE_DEVICE:
        return choose_device(None)
    try:
        return choose_device(torch.device("cuda", device_map) if isinstance(device_map, int) else device_map)
    except (RuntimeError, TypeError) as error:
        raise RequestError(f"device_map {device_map!r} is no device; use 'cuda', 'cuda:1', 'cpu' or 'auto'") from error


def refuse_other_values(asked: Mapping[str, Any]) -> None:
    """Raise if an argument of `from_pretrained` has a value that says nothing, all of them at once.

    Args:
        asked: values by name; a text such as "no" would count as yes.
    """
    name, length = asked["model_name"], asked["max_seq_length"]
    problems = [
        f"{switch} is {asked[switch]!r}; give True or False"
        for switch in SWITCHES
        if switch in asked and asked[switch] not in (None, True, False)
    ]
    if asked["load_in_fp8"] not in FP8_FORMS:
        problems.append(f"load_in_fp8 is {asked['load_in_fp8']!r}; give True, False or 'block'")
    if not isinstance(name, str):
        problems.append(f"model_name is {name!r}; give a hub id, a directory or a .gguf file")
    if length is not None and (not isinstance(length, int) or length < 1):
        problems.append(f"max_seq_length is {length!r}; give a number of tokens, or None for the model's own limit")
    if problems:
        raise RequestError(problems)


def refuse_smaller_vocabulary(rows: int, tokenizer: Any) -> None:
    """Raise if embeddings of so many rows have none for some tokens of the tokenizer."""
    known = len(getattr(tokenizer, "tokenizer", tokenizer))
    if not isinstance(rows, int) or rows < known:
        raise RequestError(
            f"resize_model_vocab is {rows!r}, and the tokenizer has {known:,} tokens; give at least that"
        )


def bits_of(values: dict[str, bool], given: frozenset[str], *, full_finetuning: bool) -> int:
    """Return the bits of a weight that the arguments ask for together: 4, 8 or 16. Given values beat the default of 4.

    FP8 and rotated int8 count as 16: such layers are quantized from 16 bits while loading, or the checkpoint holds FP8.
    """
    asked = [name for name, value in values.items() if value and name in given]
    problems = []
    if len(asked) > 1:
        problems.append(f"{' and '.join(f'{name}=True' for name in asked)} exclude each other; keep one of them")
    small = [name for name in asked if name != "load_in_16bit"]
    if full_finetuning and small:
        problems.append(
            f"full_finetuning=True trains every weight, and weights that are quantized ({', '.join(small)}) cannot be "
            f"trained; drop {', '.join(small)}, or drop full_finetuning and train an adapter"
        )
    if problems:
        raise RequestError(problems)
    whole = asked in (["load_in_16bit"], ["load_in_fp8"], ["load_in_rotated_int8"])
    if full_finetuning or whole or not (values["load_in_4bit"] or values["load_in_8bit"]):
        return 16
    return 8 if asked == ["load_in_8bit"] else 4


def targets_of(
    model: Any,
    target_modules: str | Sequence[str] | None,
    modules_to_save: str | Sequence[str] | None,
    layers: Sequence[int] | None = None,
    pattern: str | Sequence[str] | None = None,
) -> tuple[str | list[str], list[str] | None]:
    """Return the linear layers that get an adapter and the modules that are trained whole, embeddings among them.

    Args:
        model: without adapter, or with one.
        target_modules: endings of names, a regular expression, or "all-linear", which None means, too.
        modules_to_save: one name or several.
        layers: indices of layers; PEFT reads them only beside endings, so for the others whole names are chosen here.
        pattern: what the list of layers is called.
    """
    whole = [modules_to_save] if isinstance(modules_to_save, str) else list(modules_to_save or [])
    names: str | list[str]
    if target_modules is None or target_modules == ALL_LINEAR:
        names = ALL_LINEAR if layers is None else _of_layers(_without_head(model), layers, pattern)
    elif isinstance(target_modules, str):
        names = _matching(model, target_modules)
        names = names if layers is None else _of_layers(names, layers, pattern)
    else:
        whole += [name for name in target_modules if name in EMBEDDINGS]
        names = [name for name in target_modules if name not in EMBEDDINGS]
        linear = linear_layers(model)
        absent = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in linear)]
        if absent and len(absent) < len(names):
            logger.warning("target_modules %s are not in this model and get no adapter.", ", ".join(absent))
            names = [name for name in names if name not in absent]
    return names, list(dict.fromkeys(whole)) or None


def _without_head(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    return [name for name, module in linear_layers(model).items() if module is not head]


def _matching(model: Any, expression: str) -> list[str]:
    """Return the names of the linear layers that a regular expression matches as a whole, as in PEFT."""
    linear = list(linear_layers(model))
    try:
        names = [name for name in linear if re.fullmatch(expression, name)]
    except re.error as error:
        raise RequestError(f"target_modules {expression!r} is no regular expression ({error})") from error
    if not names:
        ends = any(f".{name}".endswith(f".{expression}") for name in linear)
        listed = f"; as a list, target_modules=[{expression!r}], it names endings" if ends else ""
        raise RequestError(f"target_modules {expression!r} matches no linear layer of this model{listed}")
    return names


def _of_layers(names: Sequence[str], layers: Sequence[int], pattern: str | Sequence[str] | None) -> list[str]:
    """Return those of the names whose first number is one of the indices: "model.layers.3.mlp.up_proj"."""
    lists = [pattern] if isinstance(pattern, str) else pattern
    chosen = []
    for name in names:
        parts = name.split(".")
        place = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
        if place and int(parts[place]) in layers and (not lists or parts[place - 1] in lists):
            chosen.append(name)
    if not chosen:
        raise RequestError(
            f"layers_to_transform {', '.join(map(str, layers))} leaves no linear layer to adapt; indices count from 0"
            + (f", and layers_pattern is {pattern!r}" if pattern else "")
        )
    return chosen


def layers_of(model: Any, chosen: int | Sequence[int] | None, last: int | None) -> list[int] | None:
    """Return the indices of the layers that get an adapter, or None for all."""
    if chosen is None and last is None:
        return None
    if chosen is not None and last is not None:
        raise RequestError("layers_to_transform and finetune_last_n_layers both choose layers; keep one of them")
    count = model.config.get_text_config().num_hidden_layers
    if chosen is not None:
        indices = [chosen] if isinstance(chosen, int | str) else list(chosen)
        if odd := [index for index in indices if not isinstance(index, int) or index < 0]:
            raise RequestError(f"layers_to_transform names {odd[0]!r}; give indices of layers, from 0 to {count - 1}")
        return indices
    if not isinstance(last, int) or not 1 <= last <= count:
        raise RequestError(f"finetune_last_n_layers {last!r} is not between 1 and the model's {count} layers")
    return list(range(count - last, count))


def refuse_other_adapter(model: PeftModel, wanted: dict[str, Any]) -> None:
    """Raise if the adapter that the model has is not the one asked for."""
    config = model.peft_config[model.active_adapter]
    plain = {key: sorted(value) if isinstance(value, set | list | tuple) else value for key, value in wanted.items()}
    differing = []
    for key, value in plain.items():
        has = getattr(config, key, None)
        has = sorted(has) if isinstance(has, set | list | tuple) else has
        if has != value and (has or value) and value != ALL_LINEAR:
            differing.append(f"{key} {has!r} instead of {value!r}")
    if differing:
        raise RequestError(
            f"the model has another adapter already ({'; '.join(differing)}); train it as it is, or load the base "
            "model without it"
        )
