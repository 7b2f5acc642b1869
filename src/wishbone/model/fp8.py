"""Frozen weights in FP8: half the memory of 16 bits, and matrix products at up to twice the speed.

A 16-bit checkpoint is rounded to e4m3 while it is read (`eight_bit.py`). A checkpoint that is in FP8 already keeps its
codes and scales as they are; `fp8_layers.py` says which layers those are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from wishbone.errors import RequestError
from wishbone.model.eight_bit import Arithmetic, EightBitQuantizer, empty_layer, reads_weights_directly, replace
from wishbone.model.eight_bit_linear import FP8Linear
from wishbone.model.fp8_layers import stored_layers
from wishbone.model.quantization import refusals, stored_method
from wishbone.model.quantized_experts import SCALES, expect_stored_codes, settle_stored_codes
from wishbone.ops.expert_mlp import FP8Stack
from wishbone.ops.fp8_quantize import E4M3

METHOD = "wishbone_fp8"
STORED_METHODS = ("fp8", "compressed-tensors", "fbgemm_fp8")
"""Quantization methods of checkpoints whose linear weights may be e4m3 codes with scales beside them."""
FP8_ARITHMETIC = Arithmetic(
    "is no FP8 arithmetic",
    (8, 9),
    "FP8 arithmetic begins",
    "Ada, Hopper, Blackwell",
    "load the model in 4 bits for the least memory, or in 16 bits for the most speed",
)


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
    problems = refusals(name, config, "FP8", fits=is_stored_in_fp8(config), obstacle=FP8_ARITHMETIC.obstacle(device))
    if problems := problems + reads_weights_directly(name, config, "FP8"):
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
class FP8Quantizer(EightBitQuantizer):
    """Puts FP8 layers into the empty model, rounds weights as they are read, and settles the scales.

    Attributes:
        serialized_names: what a checkpoint has beside a weight, so that scales of experts are put together like these.
    """

    serialized_names: ClassVar[dict[str, list[str]]] = {"weight": ["weight", f"weight{SCALES}"]}

    layer = FP8Linear
    stack = FP8Stack

    @property
    def stored(self) -> bool:
        """Whether the checkpoint holds codes and scales."""
        return bool(self.quantization_config.stored)

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        if not self.stored:
            super()._process_model_before_weight_loading(model, checkpoint_files, **kwargs)
            return
        layers, experts = stored_layers(model, checkpoint_files or ())
        if experts:
            expect_stored_codes(model)
        for name, scales in layers.items():
            linear = model.get_submodule(name)
            layer = empty_layer(FP8Linear, linear, scale=scales.parameter, scale_shape=scales.shape, weight_dtype=E4M3)
            replace(model, name, layer)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        super()._process_model_after_weight_loading(model, **kwargs)
        settle_stored_codes(model, model.get_input_embeddings().weight.dtype)
        return model
