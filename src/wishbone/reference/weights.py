"""The weights that the reference runs through, under the names that they have without PEFT's wrappers.

PEFT adds an adapter to a model by wrapping layers. With the trained adapter off, the reference runs the wrapped layers,
the originals of modules that are trained as whole copies, and the frozen adapters that it switches on. The names are
the same whichever layers are wrapped, so runs with different target modules share one base model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn


@dataclass(frozen=True)
class AdapterLayer:
    """What one frozen adapter adds to one layer.

    Attributes:
        name: the layer's name.
        adapter: the adapter's name.
        scale: factor of what it adds, where the method has one.
        tensors: the adapter's tensors of this layer, by their names within it.
    """

    name: str
    adapter: str
    scale: float | None
    tensors: dict[str, Tensor]


def reference_modules(
    model: nn.Module, adapters: Sequence[str] = (), name: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that run when no adapter but `adapters` is on; what adapters add is not among them."""
    if isinstance(model, BaseTunerLayer):
        yield from reference_modules(model.base_layer, adapters, name)
        return
    if isinstance(model, AuxiliaryTrainingWrapper):
        copies = model.modules_to_save if isinstance(model, ModulesToSaveWrapper) else {}
        chosen = [copies[adapter] for adapter in adapters if adapter in copies]
        yield from reference_modules(chosen[-1] if chosen else model.original_module, adapters, name)
        return
    yield name, model
    for child, module in model._modules.items():
        if module is not None:
            yield from reference_modules(module, adapters, f"{name}.{child}" if name else child)


def base_tensors(model: nn.Module, adapters: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return parameters, buffers and other tensors of `reference_modules`, quantization states included."""
    return {
        name: tensor
        for prefix, module in reference_modules(model, adapters)
        for key, value in {**vars(module), **module._parameters, **module._buffers}.items()
        for name, tensor in _tensors_in(f"{prefix}.{key}", value)
    }


def adapter_layers(model: nn.Module, adapters: Sequence[str]) -> Iterator[AdapterLayer]:
    """Yield what each of the adapters adds to each layer."""
    for path, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        tensors = [*layer.named_parameters(), *layer.named_buffers()]
        for adapter in adapters:
            own = {k: t for k, t in tensors if not k.startswith("base_layer.") and adapter in k.split(".")}
            if own:
                scale = getattr(layer, "scaling", {}).get(adapter)
                yield AdapterLayer(path.replace(".base_layer", ""), adapter, scale, own)


def _tensors_in(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """A tensor, the parts of one that wraps others, or the tensors of a quantization state."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            parts, context = value.__tensor_flatten__()
            for part in parts:
                yield from _tensors_in(f"{name}.{part} {context}", getattr(value, part))
        else:
            yield name, value
        for key, extra in vars(value).items():
            yield from _tensors_in(f"{name}.{key}", extra)
    elif type(value).__module__.startswith("bitsandbytes.") and not isinstance(value, nn.Module):
        settings = {key: part for key, part in vars(value).items() if isinstance(part, int | float | str | torch.dtype)}
        for key, part in vars(value).items():
            yield from _tensors_in(f"{name} {settings}.{key}", part)
