"""Frozen weights in 8 bits, rounded while a 16-bit checkpoint is read.

It is read tensor by tensor; each weight of a linear layer is rounded, with a scale for each row, as soon as it is on
the device, so that the device never holds more than the 8-bit model and one layer. `eight_bit_layers.py` says which
layers these are. transformers reads the files; `fp8.py` and `int8.py` each register a quantization method with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer

from wishbone.model.eight_bit_layers import layers_for_8_bits
from wishbone.model.eight_bit_linear import ROWS, EightBitLinear
from wishbone.model.quantized_experts import experts_in_values, in_codes, is_stack
from wishbone.ops.expert_mlp import QuantizedStack

READ_DIRECTLY = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h", "bamba", "jamba", "zamba2"})
"""Model types whose layers read weights of linear layers without calling them."""


@dataclass(frozen=True)
class Arithmetic:
    """Products of one 8-bit form on a GPU.

    Attributes:
        name: of the arithmetic, as "there is no ..." or "are no ...".
        capability: least compute capability of GPUs that have it.
        begins: its name on a GPU, and the verb.
        generations: of GPUs that have it.
        instead: how to load the model where they are missing.
    """

    name: str
    capability: tuple[int, int]
    begins: str
    generations: str
    instead: str

    def obstacle(self, device: torch.device) -> str | None:
        """Return why `device` has none, in one phrase that ends with the remedy; otherwise None."""
        if device.type == "cpu":
            return None
        if device.type != "cuda" or torch.version.hip is not None:
            kind = "AMD GPUs" if device.type == "cuda" else f"{device.type!r} devices"
            return f"there {self.name} for {kind} here; load the model in 16 bits"
        found, least = torch.cuda.get_device_capability(device), self.capability
        if found < least:
            return (
                f"this GPU has compute capability {found[0]}.{found[1]}, and {self.begins} with {least[0]}.{least[1]} "
                f"({self.generations}); {self.instead}"
            )
        if find_spec("triton") is None:
            return "its kernels need Triton, which is not installed; install it with `pip install triton`"
        return None


def reads_weights_directly(name: str, config: Mapping[str, Any], form: str) -> list[str]:
    """Return a sentence if layers of the model `name` read weights of linear layers, which then cannot be in 8 bits."""
    kind = config.get("model_type")
    if kind not in READ_DIRECTLY:
        return []
    return [
        f"{name!r}: layers of {kind!r} read weights of other layers, so these cannot be in {form}; load it in 16 bits"
    ]


class EightBitQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts 8-bit layers into the empty model, and rounds weights as they are read.

    Attributes:
        layer: the class of these layers.
        stack: the form of the stacked weights of experts.
    """

    layer: ClassVar[type[EightBitLinear]]
    stack: ClassVar[type[QuantizedStack]]

    @property
    def stored(self) -> bool:
        """Whether the checkpoint holds codes already."""
        return False

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        for name in layers_for_8_bits(model, self.layer.form):
            linear = model.get_submodule(name)
            replace(model, name, empty_layer(self.layer, linear, weight_dtype=linear.weight.dtype))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for _, layer in _eight_bit_layers(model):
            layer.settle()
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Return whether the tensor is a 16-bit weight, or a stack of those of experts, that becomes codes."""
        module, _, tensor = param_name.rpartition(".")
        if self.stored:
            return False
        layer = tensor == "weight" and _layer_named(model, module) is not None
        return layer or is_stack(model, param_name)

    def get_quantize_ops(self) -> ConversionOps:
        """Return the operation on such a weight."""
        return RowsTo8Bits(self.stack)

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Return bytes of an element, from which transformers reserves memory for the whole model."""
        if self.param_needs_quantization(model, param_name):
            return 1
        return float(super().param_element_size(model, param_name, param))

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        for name, layer in _eight_bit_layers(model):
            replace(model, name, layer.dequantized(dtype or layer.compute_dtype))
        experts_in_values(model, dtype)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Return False: adapters are saved, and merged models in 16 bits."""
        return False

    @property
    def is_trainable(self) -> bool:
        """True, with an adapter."""
        return True


class RowsTo8Bits(ConversionOps):  # type: ignore[misc]
    """Turns weights of 8-bit layers into codes and scales, and stacks of experts into codes; other tensors stay.

    Args:
        stack: the form of the stacks.
    """

    def __init__(self, stack: type[QuantizedStack]) -> None:
        self._stack = stack

    def convert(
        self, input_dict: dict[str, Any], model: PreTrainedModel | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return the tensors by name, with one more for each weight: its scales."""
        result: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            module = name.rpartition(".")[0]
            if model is not None and is_stack(model, name):
                result[name] = in_codes(tensor, self._stack)
                continue
            layer = None if model is None else _layer_named(model, module)
            if layer is None:
                result[name] = tensor
                continue
            rows = layer.quantized(tensor)
            result[name] = nn.Parameter(rows.values, requires_grad=False)
            result[f"{module}.{ROWS}"] = nn.Parameter(rows.scale, requires_grad=False)
        return result


def empty_layer(kind: type[EightBitLinear], linear: Any, **options: Any) -> EightBitLinear:
    """Return an 8-bit layer to load into, of the sizes of `linear`.

    Args:
        kind: its class.
        linear: `nn.Linear`, perhaps on "meta".
        options: of the class; a weight that is rounded on the way has the dtype in which it is read.
    """
    has_bias = linear.bias is not None
    return kind(linear.in_features, linear.out_features, has_bias, dtype=linear.weight.dtype, device="meta", **options)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one with this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _eight_bit_layers(model: nn.Module) -> list[tuple[str, EightBitLinear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, EightBitLinear)]


def _layer_named(model: nn.Module, name: str) -> EightBitLinear | None:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return None
    return module if isinstance(module, EightBitLinear) else None
