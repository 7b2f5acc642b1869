"""The weights of a model as they would be without its adapters: merged where an adapter is, plain everywhere else."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from wishbone.errors import RequestError


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the model that adapters were put into, or the model itself."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that the model runs with."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return list(dict.fromkeys(name for layer in layers for name in layer.active_adapters))


@torch.no_grad()
def merged_weights(base: PreTrainedModel, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state of the model as it would be without adapters, in `dtype`, tied weights as one tensor.

    Every layer is merged, copied and put back, one at a time, so that no more than one layer exists twice.
    """
    rounded: list[str] = []
    tied: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def cast(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.cpu()
        value = tensor.to(dtype)
        if not torch.equal(value.to(tensor.dtype), tensor):
            rounded.append(name)
        return value.cpu()

    merged: dict[str, Tensor] = {}
    tuners = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in tuners.items():
        if layer.merged:
            continue
        parameters = dict(layer.get_base_layer().named_parameters())
        before = {key: parameter.data.clone() for key, parameter in parameters.items()}
        layer.merge(safe_merge=True)
        for key, parameter in parameters.items():
            if not torch.equal(parameter.data, before[key]):
                plain = f"{name.replace('.base_layer', '')}.{key}"
                merged[plain] = cast(plain, parameter.data).clone()
                if base.dtype == dtype:
                    rounded.append(plain)
        layer.unmerge()
        for key, parameter in parameters.items():
            parameter.data.copy_(before[key])
    weights: dict[str, Tensor] = {}
    for key, tensor in base.state_dict().items():
        name_without = _plain_name(key, base, tuners)
        if name_without is None:
            continue
        identity = (tensor.data_ptr(), tuple(tensor.shape))
        if name_without not in merged and identity not in tied:
            tied[identity] = cast(name_without, tensor)
        weights[name_without] = merged[name_without] if name_without in merged else tied[identity]
    return weights, rounded


def _plain_name(key: str, base: PreTrainedModel, tuners: dict[str, Any]) -> str | None:
    """Return the name that a tensor has in a model without adapters, or None for what belongs to an adapter."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        name, rest = ".".join(parts[:length]), parts[length:]
        if name in tuners and rest[0] in tuners[name].adapter_layer_names:
            return None
        module = base.get_submodule(name) if rest[0] in ("original_module", "modules_to_save") else None
        if isinstance(module, ModulesToSaveWrapper):
            active = module.active_adapters[0] if module.active_adapters else None
            used = ["modules_to_save", active] if active in module.modules_to_save else ["original_module"]
            return ".".join([name, *rest[len(used) :]]) if rest[: len(used)] == used else None
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise RequestError(f"{name} is trained through {type(module).__name__}, which cannot be merged")
    return ".".join(part for part in parts if part != "base_layer")
