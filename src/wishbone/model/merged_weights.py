"""The weights that a model with adapters has once they are merged: W' where an adapter is, W everywhere else.

W' is round(W + s B A), from a sum in float32, rounded up or down at random so that E[W'] is the sum. The random numbers
are a hash of W and of what is added (`ops/low_rank_add`), so the same model gives the same files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from wishbone.errors import RequestError
from wishbone.ops.low_rank_add.reference import ROUNDED_AT_RANDOM, rounded_at_random

ROWS_AT_ONCE = 1024
"""Rows of a merged weight that are rounded at a time."""


def base_of(model: nn.Module) -> PreTrainedModel:
    """Return the model that adapters were put into, or the model itself."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def active_adapters(model: nn.Module) -> list[str]:
    """Return the names of the adapters that the model runs with."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return list(dict.fromkeys(name for layer in layers for name in layer.active_adapters))


@torch.no_grad()
def merged_weights(base: PreTrainedModel, dtype: torch.dtype, *, again: bool = False) -> dict[str, Tensor]:
    """Return the state of the model once its adapters are merged, in `dtype`, tied weights as one tensor.

    Layers are merged, rounded at random and restored one at a time, so that only one at a time takes float32 memory.
    Weights without an adapter are rounded to the nearest.

    Args:
        base: the model that adapters are in; afterwards it is bit by bit what it was.
        dtype: bfloat16 or float16; float32 keeps the sum as it is.
        again: a second rounding: with other random numbers, and at random for weights without an adapter, too.
    """
    tied: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def plain(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.cpu()
        nearest = tensor.to(dtype)
        if again and not torch.equal(nearest.to(tensor.dtype), tensor):
            return _rounded(tensor, dtype, seed=1)
        return nearest.cpu()

    merged: dict[str, Tensor] = {}
    tuners = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in tuners.items():
        if layer.merged:
            continue
        with _merged_in_float32(layer) as before:
            for key, parameter in layer.get_base_layer().named_parameters():
                if not bool((parameter == before[parameter]).all()):
                    whole_name = f"{name.replace('.base_layer', '')}.{key}"
                    merged[whole_name] = _rounded(parameter.data, dtype, seed=int(again))
    weights: dict[str, Tensor] = {}
    for key, tensor in base.state_dict().items():
        name_without = _plain_name(key, base, tuners)
        if name_without is None:
            continue
        identity = (tensor.data_ptr(), tuple(tensor.shape))
        if name_without not in merged and identity not in tied:
            tied[identity] = plain(tensor)
        weights[name_without] = merged[name_without] if name_without in merged else tied[identity]
    return weights


@contextmanager
def _merged_in_float32(layer: Any) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Merge copies of a layer's weights in float32, as PEFT rounds to their dtype; yield the weights themselves."""
    before = {parameter: parameter.data for parameter in layer.parameters() if parameter.is_floating_point()}
    try:
        for parameter, data in before.items():
            parameter.data = data.to(torch.promote_types(data.dtype, torch.float32), copy=True)
        layer.merge(safe_merge=True)
        yield before
    finally:
        try:
            if layer.merged:
                layer.unmerge()
        finally:
            for parameter, data in before.items():
                parameter.data = data


def _rounded(exact: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Return a weight in `dtype` on the CPU, rounded at random, a few rows at a time to save memory."""
    if dtype not in ROUNDED_AT_RANDOM:
        return exact.to("cpu", dtype, copy=True)
    parts = []
    for part in torch.atleast_1d(exact).split(ROWS_AT_ONCE):
        nearest = part.to(dtype)
        parts.append(rounded_at_random(nearest, (part - nearest).float(), seed).cpu())
    return torch.cat(parts).view(exact.shape)


def _plain_name(key: str, base: PreTrainedModel, tuners: dict[str, Any]) -> str | None:
    """Return the name that a tensor has in a model without adapters, or None for a tensor of an adapter."""
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
