"""Frozen weights in FP8: half the memory of 16 bits, and matrix products at up to twice the speed.

A 16-bit checkpoint is read tensor by tensor; each weight of a linear layer is rounded to e4m3, with a scale for each
row, as soon as it is on the device, so that the device never holds more than the FP8 model and one layer. A checkpoint
that is in FP8 already keeps its codes and scales as they are. `fp8_layers.py` says which layers are in FP8.

transformers reads the files; this module registers a quantization method with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from wishbone.errors import RequestError
from wishbone.model.fp8_layers import StoredScales, layers_for_fp8, stored_layers
from wishbone.model.fp8_linear import ROWS, FP8Linear
from wishbone.model.quantization import refusals, stored_method
from wishbone.model.quantized_experts import (
    SCALES,
    expect_stored_codes,
    experts_in_values,
    in_codes,
    is_stack,
    settle_stored_codes,
)
from wishbone.ops.expert_mlp import FP8Stack
from wishbone.ops.fp8_quantize import E4M3, quantize_rows

METHOD = "wishbone_fp8"
STORED_METHODS = ("fp8", "compressed-tensors", "fbgemm_fp8")
"""Quantization methods of checkpoints whose linear weights may be e4m3 codes with scales beside them."""
CAPABILITY = (8, 9)
"""Least compute capability of GPUs with FP8 arithmetic."""
READ_DIRECTLY = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h", "bamba", "jamba", "zamba2"})
"""Model types whose layers read weights of linear layers without calling them."""


def fp8_obstacle(device: torch.device) -> str | None:
    """Return why there is no FP8 arithmetic on `device`, in one phrase that ends with the remedy; otherwise None."""
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        kind = "AMD GPUs" if device.type == "cuda" else f"{device.type!r} devices"
        return f"there is no FP8 arithmetic for {kind} here; load the model in 16 bits"
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        return (
            f"this GPU has compute capability {found[0]}.{found[1]}, and FP8 arithmetic begins with "
            f"{CAPABILITY[0]}.{CAPABILITY[1]} (Ada, Hopper, Blackwell); load the model in 4 bits for the least memory, "
            "or in 16 bits for the most speed"
        )
    if find_spec("triton") is None:
        return "its kernels need Triton, which is not installed; install it with `pip install triton`"
    return None


def is_stored_in_fp8(config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint with this config.json stores weights as e4m3 codes."""
    method = stored_method(config)
    if method != "compressed-tensors":
        return method in STORED_METHODS
    groups = config["quantization_config"].get("config_groups") or {}
    weights = [(group or {}).get("weights") or {} for group in groups.values()]
    return bool(weights) and all((w.get("type"), w.get("num_bits")) == ("float", 8) for w in weights)


def fp8_options(
    name: str, path: str, config: Mapping[str, Any], options: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Return the options that make transformers load linear layers in FP8.

    Args:
        name: of the model, for errors.
        path: where transformers reads it, with `options`.
        config: its config.json; its weights are in FP8 already, or in 16 bits.
        device: where they go.

    Raises:
        RequestError: the model's layers cannot be in FP8, or not on this device.
    """
    problems = refusals(name, config, "FP8", fits=is_stored_in_fp8(config), obstacle=fp8_obstacle(device))
    if config.get("model_type") in READ_DIRECTLY:
        problems.append(
            f"{name!r}: layers of {config['model_type']!r} read weights of other layers, so these cannot be in FP8; "
            "load it in 16 bits"
        )
    if problems:
        raise RequestError(problems)
    if not stored_method(config):
        return {"quantization_config": FP8Config()}
    plain = AutoConfig.from_pretrained(path, **options)
    for part in (plain, plain.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return {"config": plain, "quantization_config": FP8Config(stored=True)}


@register_quantization_config(METHOD)
class FP8Config(QuantizationConfigMixin):  # type: ignore[misc]
    """How transformers loads FP8 layers.

    Args:
        stored: whether the checkpoint holds codes and scales; otherwise its weights are rounded while they are read.
    """

    def __init__(self, stored: bool = False, **further: Any) -> None:
        self.quant_method = METHOD
        self.stored = stored


@register_quantizer(METHOD)
class FP8Quantizer(HfQuantizer):  # type: ignore[misc]
    """Puts FP8 layers into the empty model, rounds weights as they are read, and settles the scales.

    Attributes:
        serialized_names: what a checkpoint has beside a weight, so that scales of experts are put together like these.
    """

    serialized_names: ClassVar[dict[str, list[str]]] = {"weight": ["weight", f"weight{SCALES}"]}

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        layers: Mapping[str, StoredScales | None]
        if self.quantization_config.stored:
            layers, experts = stored_layers(model, checkpoint_files or ())
            if experts:
                expect_stored_codes(model)
        else:
            layers = dict.fromkeys(layers_for_fp8(model))
        for name, scales in layers.items():
            _replace(model, name, _empty_layer(model.get_submodule(name), scales))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for _, layer in _fp8_layers(model):
            layer.settle()
        settle_stored_codes(model, model.get_input_embeddings().weight.dtype)
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Return whether the tensor is a 16-bit weight, or a stack of those of experts, that becomes codes."""
        module, _, tensor = param_name.rpartition(".")
        if self.quantization_config.stored:
            return False
        return (tensor == "weight" and _is_fp8(model, module)) or is_stack(model, param_name)

    def get_quantize_ops(self) -> ConversionOps:
        """Return the operation on such a weight."""
        return RowsToFP8()

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Return bytes of an element, from which transformers reserves memory for the whole model."""
        if self.param_needs_quantization(model, param_name):
            return 1
        return float(super().param_element_size(model, param_name, param))

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        for name, layer in _fp8_layers(model):
            _replace(model, name, layer.dequantized(dtype or layer.compute_dtype))
        experts_in_values(model, dtype)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Return False: adapters are saved, and merged models in 16 bits."""
        return False

    @property
    def is_trainable(self) -> bool:
        """True, with an adapter."""
        return True


class RowsToFP8(ConversionOps):  # type: ignore[misc]
    """Turns weights of FP8 layers into codes and scales, and stacks of experts into codes; other tensors stay."""

    def convert(
        self, input_dict: dict[str, Any], model: PreTrainedModel | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return the tensors by name, with one more for each weight: its scales."""
        result: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            module = name.rpartition(".")[0]
            if model is not None and is_stack(model, name):
                result[name] = in_codes(tensor, FP8Stack)
                continue
            if model is None or not _is_fp8(model, module):
                result[name] = tensor
                continue
            rows = quantize_rows(tensor)
            result[name] = nn.Parameter(rows.values, requires_grad=False)
            result[f"{module}.{ROWS}"] = nn.Parameter(rows.scale, requires_grad=False)
        return result


def _empty_layer(linear: nn.Linear, scales: StoredScales | None) -> FP8Linear:
    """Return an FP8 layer to load into; a weight that is rounded on the way has the dtype in which it is read."""
    return FP8Linear(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        dtype=linear.weight.dtype,
        scale=scales.parameter if scales else ROWS,
        scale_shape=scales.shape if scales else None,
        weight_dtype=E4M3 if scales else linear.weight.dtype,
        device="meta",
    )


def _fp8_layers(model: nn.Module) -> list[tuple[str, FP8Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, FP8Linear)]


def _is_fp8(model: PreTrainedModel, name: str) -> bool:
    try:
        return isinstance(model.get_submodule(name), FP8Linear)
    except AttributeError:
        return False


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
