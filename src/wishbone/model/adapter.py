"""LoRA: y = W x + (alpha / rank) B A x with W frozen; A is random and B zero, so a fresh adapter changes nothing.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), equation 3. PEFT builds the
layers. A and B are float32 whatever the dtype of W, because updates smaller than half a step of bfloat16 would be lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from wishbone.errors import RequestError, one_line
from wishbone.model.adapter_names import absent_names
from wishbone.model.eight_bit_linear import refuse_readers_of_codes
from wishbone.model.quantization import is_quantized

ALL_LINEAR, LANGUAGE_LINEAR = "all-linear", "language-linear"
BIASES = ("none", "all", "lora_only")
FUSED_OUTPUT = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"})
"""Model types whose fused kernels read the weight of `out_proj` directly, so that an adapter on it has no effect."""


def lora_config(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Literal["all-linear", "language-linear"] | Sequence[str] = ALL_LINEAR,
    **further: Any,
) -> LoraConfig:
    """Return the configuration of a LoRA adapter (arXiv 2106.09685) that fits `model`.

    Args:
        model: a causal language model without adapter.
        rank: columns of B and rows of A.
        alpha: the adapter's output is scaled by alpha / rank; None is `rank`, a scale of 1.
        dropout: probability in [0, 1) that an input of A is dropped in training.
        target_modules: names of linear layers ("q_proj", "layers.0.mlp.down_proj"), or "all-linear" for all but the
            head, `out_proj` of state-space layers (`FUSED_OUTPUT`) and routers of experts, or "language-linear" for
            those of them that are not in a vision tower (`tower_layers`). Stacked weights of experts
            are named like layers ("experts.gate_up_proj", "experts.down_proj") and become PEFT's `target_parameters`.
            In families that kept experts apart before transformers 5 (Qwen3 MoE, DeepSeek) PEFT counts them among all
            linear layers; in others they stay frozen unless they are named.
        further: other fields of PEFT's `LoraConfig`, such as `use_rslora` or `modules_to_save`.

    Raises:
        RequestError: a value is out of range, a name is not that of a linear layer, or the model has an adapter.
    """
    if isinstance(model, PeftModel):
        raise RequestError("the model already has an adapter; give its base model, or train that adapter as it is")
    alpha = float(rank) if alpha is None else alpha
    names = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    everything = names in ([ALL_LINEAR], [LANGUAGE_LINEAR])
    excluded = _not_adapted(model) if everything else []
    excluded += tower_layers(model) if names == [LANGUAGE_LINEAR] else []
    problems = _out_of_range(rank, alpha, dropout) + _unusable(model, further)
    stacked = [] if everything else _stacked(model, names)
    linear = [name for name in names if name not in stacked]
    if linear or not stacked:
        problems += [] if everything else _unknown_targets(model, linear)
    if stacked and dropout:
        problems.append(f"dropout {dropout} does not work on stacked weights of experts ({', '.join(stacked)}); use 0")
    if problems:
        raise RequestError(problems)
    if stacked:
        further = {"target_parameters": [*(further.get("target_parameters") or ()), *stacked]} | {
            name: value for name, value in further.items() if name != "target_parameters"
        }
    try:
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=ALL_LINEAR if everything else linear,
            task_type="CAUSAL_LM",
            **({"exclude_modules": excluded} if excluded else {}) | further,
        )
    except (ValueError, ImportError) as error:
        raise RequestError(f"PEFT refuses this adapter: {one_line(error)}") from error
    if absent := absent_names(model, config):
        raise RequestError(absent)
    return config


def _not_adapted(model: PreTrainedModel) -> list[str]:
    """Names of linear layers on which an adapter has no effect, or whose output is more than their product: routers."""
    routers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and type(module).__module__.startswith("transformers.models.")
        and type(module).forward is not nn.Linear.forward
    ]
    return [*routers, *(["out_proj"] if model.config.model_type in FUSED_OUTPUT else [])]


def tower_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers that text does not run through: of towers and what projects their results.

    Args:
        model: without adapter.
    """
    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = {id(module) for module in text.modules()} | {id(model.get_output_embeddings())}
    return [name for name, module in linear_layers(model).items() if id(module) not in inside]


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Return the linear layers of a model by name, GPT-2's `Conv1D` and the output head among them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def add_adapter(model: PreTrainedModel, *, seed: int = 0, **settings: Any) -> PeftModel:
    """Freeze `model` and put a LoRA adapter, in float32, on its linear layers; the model is changed in place.

    Args:
        model: a causal language model without adapter.
        seed: of the random A; the global random state does not change.
        settings: as `lora_config` takes them.

    Raises:
        RequestError: as `lora_config`, or PEFT refuses the configuration.
    """
    config = lora_config(model, **settings)
    refuse_readers_of_codes(model, {"default": config})
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config, autocast_adapter_dtype=True)
        except (ValueError, TypeError) as error:
            raise RequestError(f"PEFT cannot put an adapter on {config.target_modules}: {error}") from error


def parameter_values(model: Any) -> dict[nn.Parameter, Tensor]:
    """Return the tensors that the parameters of a model hold now; nothing if `model` is not a model yet."""
    return {parameter: parameter.data for parameter in model.parameters()} if isinstance(model, nn.Module) else {}


def undo_rounding(model: nn.Module, before: dict[nn.Parameter, Tensor]) -> None:
    """Give the values back to an adapter on quantized weights that the model was given with.

    TRL's trainer rounds adapters on quantized weights to bfloat16 when it is constructed.

    Args:
        model: the trainer's model.
        before: `parameter_values` of the model that it was given.
    """
    for parameter in _rounded(model):
        if parameter in before:
            parameter.data = before[parameter].to(parameter.device)


def train_in_float32(model: nn.Module) -> None:
    """Make the adapter on quantized weights float32.

    In bfloat16 most updates of an element near 0.01 are lost at a learning rate of 5e-6: the next value is 6e-5 away.
    """
    for parameter in _rounded(model):
        parameter.data = parameter.data.float()


def _rounded(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters in bfloat16 of a model with quantized weights; of other models none."""
    if not is_quantized(model):
        return []
    return [p for p in model.parameters() if p.requires_grad and p.dtype == torch.bfloat16]


@torch.no_grad()
def copy_adapter(model: PeftModel, source: str, target: str) -> None:
    """Give adapter `target` the values of adapter `source`, parameter by parameter; both have one configuration."""
    copies = _adapter_parameters(model, target)
    for name, parameter in _adapter_parameters(model, source).items():
        copies[name].copy_(parameter)


@torch.no_grad()
def scale_adapter(model: PeftModel, adapter: str, factor: float) -> None:
    """Multiply what a LoRA adapter adds to its layers by `factor`: its B."""
    for name, parameter in _adapter_parameters(model, adapter).items():
        if name.split(".")[-2] in ("lora_B", "lora_embedding_B") or ".lora_B." in name:
            parameter.mul_(factor)


def _adapter_parameters(model: PeftModel, adapter: str) -> dict[str, nn.Parameter]:
    """Return the parameters of one adapter by their names, with "*" for the name of the adapter."""
    found = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if adapter in parts:
            parts[parts.index(adapter)] = "*"
            found[".".join(parts)] = parameter
    return found


def _out_of_range(rank: int, alpha: float, dropout: float) -> list[str]:
    if not isinstance(rank, int):
        return [f"adapter rank {rank!r} is no whole number; 8 to 64 are usual"]
    if not isinstance(alpha, int | float) or not isinstance(dropout, int | float):
        return [f"adapter alpha {alpha!r} and dropout {dropout!r} must be numbers"]
    problems = []
    if rank < 1:
        problems.append(f"adapter rank {rank} is below 1; 8 to 64 are usual")
    if not alpha > 0:
        problems.append(f"adapter alpha {alpha} is not above 0; the rank itself is a good value")
    if not 0 <= dropout < 1:
        problems.append(f"adapter dropout {dropout} is not in [0, 1); use 0 for none")
    return problems


def _unusable(model: PreTrainedModel, further: Mapping[str, Any]) -> list[str]:
    """Return what PEFT leaves out without a word, or meets in the middle of its work, in fields of `LoraConfig`."""
    bias = further.get("bias", "none")
    problems = [] if bias in BIASES else [f"bias {bias!r} is not known; use one of {', '.join(BIASES)}"]
    unknown, quantized = modules_trained_whole(model, further.get("modules_to_save") or ())
    return problems + unknown + quantized


def modules_trained_whole(model: nn.Module, wanted: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a sentence for each of the modules to be trained whole that does not exist, and that holds codes.

    Args:
        model: without adapter.
        wanted: `modules_to_save`: ends of names, as PEFT reads them.
    """
    if isinstance(wanted, str):
        return [], [f"modules_to_save is a text, whose letters PEFT would look for; give a list: [{wanted!r}]"]
    modules = dict(model.named_modules())
    meant = {end: [module for name, module in modules.items() if name.endswith(end)] for end in wanted}
    unknown = [
        f"modules_to_save names {end!r}, and the model has no such module; correct the name"
        for end, found in meant.items()
        if not found
    ]
    quantized = [
        f"modules_to_save names {end!r}, whose weights are quantized and cannot be trained; take it out, or load the "
        "model in 16 bits"
        for end, found in meant.items()
        if any(map(is_quantized, found))
    ]
    return unknown, quantized


def _stacked(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """Return the names, of at least two parts, that are those of stacked weights."""
    stacks = [name for name, parameter in model.named_parameters() if parameter.dim() == 3]
    return [name for name in names if "." in name and any(f".{stack}".endswith(f".{name}") for stack in stacks)]


def _unknown_targets(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    head = model.get_output_embeddings()
    linear = linear_layers(model)
    inside = [name for name, module in linear.items() if module is not head]
    stacks = [name for name, parameter in model.named_parameters() if parameter.dim() == 3]
    offered = ", ".join(
        dict.fromkeys(
            [name.rsplit(".", 1)[-1] for name in inside] + [".".join(name.split(".")[-2:]) for name in stacks]
        )
    )
    problems = [] if names else [f"no target modules are named; use all-linear or some of: {offered}"]
    for target in names:
        if any(name == target or name.endswith(f".{target}") for name in inside):
            continue
        if any(name == target or name.endswith(f".{target}") for name in linear):
            problems.append(f"target module {target!r} is the output head, which stays frozen; use some of: {offered}")
        else:
            problems.append(f"target module {target!r} is not a linear layer of this model; these are: {offered}")
    return problems
