"""Whether a resumed run is the run that its checkpoint belongs to.

A checkpoint holds what was learned, not what it was learned from. `fingerprint.json` beside it records what decides the
result: the settings, the pairs in their order, the weights of the model and of the reference, the adapter. A run that
continues must have the same. Versions of libraries and the device are recorded too: with others the run continues, and
a line says that results may differ in rounding.

What changes no result may change: how many steps, what is logged, saved and evaluated, how rows are packed, where it
runs. The tokenizer is not recorded: the token ids of every pair are.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments

from wishbone.data.columns import IMAGE_KEY
from wishbone.data.content_hash import content_hash
from wishbone.data.json_text import parse_json
from wishbone.errors import RequestError
from wishbone.reference.identity import COSMETIC, COSMETIC_OF_ADAPTER, plain_configuration
from wishbone.reference.tensor_hash import tensor_hashes
from wishbone.reference.weights import adapter_layers, base_tensors
from wishbone.trainer.checkpoint_files import FINGERPRINT
from wishbone.version import __version__

Facts = dict[str, dict[str, Any]]

_FREE = frozenset(
    {
        "output_dir", "do_train", "do_eval", "do_predict", "run_name", "project", "report_to", "debug",
        "max_steps", "num_train_epochs", "resume_from_checkpoint", "ignore_data_skip",
        "restore_callback_states_from_checkpoint", "load_best_model_at_end", "metric_for_best_model",
        "greater_is_better", "enable_jit_checkpoint", "push_to_hub", "per_device_eval_batch_size",
        "prediction_loss_only", "bf16_full_eval", "fp16_full_eval", "batch_eval_metrics",
        "include_for_metrics", "include_inputs_for_metrics", "include_num_input_tokens_seen",
        "include_tokens_per_second", "disable_tqdm", "skip_memory_metrics", "log_level", "log_level_replica",
        "log_on_each_node", "use_cpu", "local_rank", "deepspeed", "fsdp", "fsdp_config",
        "fsdp_min_num_params", "parallelism_config", "accelerator_config", "torch_empty_cache_steps",
        "auto_find_batch_size", "use_cache", "activation_checkpointing", "activation_checkpointing_kwargs",
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_offloading", "shared_steps",
        "trust_remote_code", "model_init_kwargs", "dataset_num_proc", "precompute_ref_batch_size",
        "remove_unused_columns", "label_names", "gradient_accumulation_steps", "token_budget", "activations",
        "cuda_graphs", "reference_store", "guard", "guard_steps",
    }
)  # fmt: skip
"""Arguments that may change; so may those that begin with one of `_FREE_KINDS`."""
_FREE_KINDS = ("logging_", "save_", "eval_", "hub_", "ddp_", "dataloader_", "trackio_")
_DECIDING = frozenset({"dataloader_drop_last"})
_DECIDING_OF_ACCELERATOR = ("split_batches", "use_seedable_sampler")
"""What of `accelerator_config` decides which pairs come when."""
HELD_OUT = "held out"
"""The fact that holds the hash of the held-out pairs."""
ADAPTERS = "adapters"
"""The fact that holds what the adapters of a second model add to it."""
_COMPUTED = frozenset({"ref_chosen_logps", "ref_rejected_logps"})
"""Columns that TRL adds with values of the reference, whose weights are recorded themselves."""
MAY_CHANGE = (
    "more steps or epochs, logging, saving, evaluation, trackers, output, devices, token budget, activations, the "
    "reference store and the guard"
)


def settings_of(args: TrainingArguments, processes: int) -> dict[str, Any]:
    """Return the arguments of a trainer that decide its result, as values of JSON.

    Micro-steps of a step are counted over all processes, so that another number of them may do the same work.
    Processes that share the pairs of a step do the work of one.
    """
    chosen = {
        name: _plain(value)
        for name, value in args.to_dict().items()
        if name in _DECIDING or not (name in _FREE or name.startswith(_FREE_KINDS) or name.startswith("_"))
    }
    for name in _DECIDING_OF_ACCELERATOR:
        chosen[f"accelerator_config.{name}"] = getattr(args.accelerator_config, name)
    batches = 1 if getattr(args, "shared_steps", False) else processes
    return chosen | {"micro-batches in a step": args.gradient_accumulation_steps * batches}


def model_facts(model: nn.Module) -> dict[str, Any]:
    """Return the configuration of a model, without what is cosmetic, and the hash of its frozen weights.

    Of a model with an adapter, the adapter's weights do not count: they are in the checkpoint, or begin at random.
    Those of a frozen copy that is the reference do.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    copies = ["ref"] if isinstance(model, PeftModel) and "ref" in model.peft_config else []
    passing = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in base.named_modules()
        for name in module._non_persistent_buffers_set
    }
    tensors = {name.removeprefix("."): tensor for name, tensor in base_tensors(base, copies).items()}
    for layer in adapter_layers(base, copies):
        tensors |= {f"{layer.name} {layer.adapter} {key}": tensor for key, tensor in layer.tensors.items()}
    counted = {
        n: t for n, t in sorted(tensors.items()) if n.replace(".base_layer", "") not in passing and not t.is_meta
    }
    rows = zip(counted.items(), tensor_hashes(list(counted.values())), strict=True)
    text = json.dumps([[name, list(tensor.shape), str(tensor.dtype), row] for (name, tensor), row in rows])
    config = plain_configuration(base.config.to_dict(), COSMETIC)
    facts = {f"config.{key}": value for key, value in sorted(config.items())}
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in base.parameters()})
    return {"weights": f"SHA-256 {hashlib.sha256(text.encode()).hexdigest()}", "dtype": ", ".join(dtypes), **facts}


def reference_facts(model: nn.Module) -> dict[str, Any]:
    """Return the same of a second model that is the reference, with a hash of what its adapters and prompts add."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    below = {id(tensor) for tensor in base_tensors(base).values()}
    added = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in below}
    facts = model_facts(model)
    if added:
        rows = zip(sorted(added), tensor_hashes([added[name] for name in sorted(added)]), strict=True)
        active = model.active_adapters if isinstance(model, PeftModel) else []
        text = json.dumps([*map(list, rows), active, adapter_facts(model)])
        facts[ADAPTERS] = f"SHA-256 {hashlib.sha256(text.encode()).hexdigest()}"
    return facts


def adapter_facts(model: nn.Module) -> dict[str, Any]:
    """Return the configuration of the adapter that is trained; empty without one."""
    if not isinstance(model, PeftModel):
        return {}
    config = model.peft_config[model.active_adapter].to_dict()
    facts: dict[str, Any] = _plain(plain_configuration(config, COSMETIC_OF_ADAPTER))
    return facts


def trained_facts(model: nn.Module) -> str:
    """Return how many parameters are trained and the hash of their names: an optimizer's state belongs to these."""
    names = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return f"{len(names)} tensors, SHA-256 {hashlib.sha256(json.dumps(names).encode()).hexdigest()}"


def pairs_facts(dataset: Any) -> Any:
    """Return how many rows a data set has and the hash of what they hold in their order; a stream is not read."""
    if isinstance(dataset, Mapping):
        return {str(name): pairs_facts(inner) for name, inner in dataset.items()}
    if not isinstance(dataset, Dataset):
        return None if dataset is None else "a stream"
    columns = sorted(set(dataset.column_names) - _COMPUTED)
    if IMAGE_KEY in columns:
        columns.remove("images")  # the key stands for what their files hold, wherever these lie
    return f"{len(dataset)} rows, SHA-256 {content_hash(dataset, columns)}"


def kind_of(given: object | None) -> str | None:
    """Return the class of an optimizer or a scheduler that a script made; None where the arguments decide."""
    return None if given is None else f"{type(given).__module__}.{type(given).__qualname__}"


def options_of(optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Return the options of an optimizer that a script made, by group: a checkpoint brings those of its own back."""
    facts = {}
    for number, group in enumerate(optimizer.param_groups if optimizer is not None else ()):
        start = {"lr": group["initial_lr"]} if "initial_lr" in group else {}  # a scheduler moves lr
        for name, value in {**group, **start}.items():
            value = float(value) if isinstance(value, torch.Tensor) and value.numel() == 1 else value
            if name not in ("params", "initial_lr") and isinstance(value, int | float | str | tuple):
                facts[f"optimizer, group {number}: {name}"] = _plain(value)
    return facts


def versions() -> dict[str, str]:
    """Return what rounding depends on: versions of libraries, and the device."""
    libraries = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"wishbone": __version__, **libraries, "device": device}


def read_fingerprint(checkpoint: Path) -> Facts | None:
    """Return what a checkpoint recorded, or None where it recorded nothing that can be read."""
    try:
        facts = parse_json((checkpoint / FINGERPRINT).read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def changes(old: Facts, new: Facts) -> list[str]:
    """Say what differs, one line each: name, old and new value. Facts that only one of the two has are not compared.

    Without a model of its own the reference has the weights that the model started with. So a run may name that model
    as its reference, or leave it out, and continue; another one it may not.
    """
    lines = []
    for section, facts in new.items():
        if section == "versions":
            continue
        recorded = old.get(section, {})
        if section == "reference" and bool(recorded) != bool(facts):
            recorded, facts = _weights_of_reference(old), _weights_of_reference(new)
        if section == "adapter" and section in old and bool(recorded) != bool(facts):
            lines.append(f"adapter was {_kind(recorded)} and is {_kind(facts)}")
        for name, value in facts.items():
            if name in recorded and recorded[name] != value:
                shown = name if section == "settings" else f"{section}: {name}"
                lines.append(f"{shown} was {_shown(recorded[name])} and is {_shown(value)}")
    return lines


def _kind(adapter: Mapping[str, Any]) -> str:
    return str(adapter.get("peft_type", "one")) if adapter else "none"


def _weights_of_reference(facts: Facts) -> dict[str, Any]:
    """The hash of the reference's weights, where it is known: its own, or those that the model starts with."""
    held = facts.get("reference") or facts.get("model", {})
    return {ADAPTERS: "none"} | {name: value for name, value in held.items() if name in ("weights", ADAPTERS)}


def refuse_changes(lines: list[str], checkpoint: Path) -> None:
    """Refuse to continue another run than the one that wrote a checkpoint.

    Raises:
        RequestError: with everything that differs, the remedy, and what may change.
    """
    if lines:
        raise RequestError(
            f"{checkpoint} belongs to a run with other settings, data or weights:\n"
            + "".join(f"  - {line}\n" for line in lines)
            + "Put them back to continue it, or start a new run in another directory. "
            f"A run that continues may change {MAY_CHANGE}."
        )


def other_versions(old: Facts, new: Facts) -> str | None:
    """Say which versions or device are not those of the checkpoint, in one line, or None."""
    was, now = old.get("versions", {}), new["versions"]
    lines = [f"{name} {was[name]} is now {now[name]}" for name in now if name in was and was[name] != now[name]]
    return f"{', '.join(lines)}: results may differ in rounding from an uninterrupted run" if lines else None


def _plain(value: Any) -> Any:
    """A value in those of JSON, sets sorted."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    text = text if not isinstance(value, str) else value
    cut = text.partition("SHA-256 ")
    if cut[1]:
        return f"{cut[0]}{cut[1]}{cut[2][:12]}..."
    return text if len(text) <= 100 else f"{text[:100]}..."
