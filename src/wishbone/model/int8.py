"""Frozen weights in int8 after a rotation: half the memory of 16 bits, and int8 products on every GPU since Turing.

Truer than FP8, because the rotation leaves no outliers (docs/eight-bits.md). It is not bitsandbytes' LLM.int8, which
keeps outlier columns in 16 bits and turns codes back into 16 bits for the gradient. A 16-bit checkpoint is rotated and
rounded while it is read (`eight_bit.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from wishbone.errors import RequestError
from wishbone.model.eight_bit import Arithmetic, EightBitQuantizer, reads_weights_directly
from wishbone.model.eight_bit_linear import Int8Linear
from wishbone.model.quantization import refusals
from wishbone.ops.expert_mlp import Int8Stack

METHOD = "wishbone_int8"
INT8_ARITHMETIC = Arithmetic(
    "are no int8 products",
    (7, 5),
    "int8 tensor cores begin",
    "Turing",
    "load the model in 4 bits for the least memory, or in 16 bits",
)


def int8_options(name: str, config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the options that make transformers load linear layers in rotated int8.

    Args:
        name: of the model, for errors.
        config: its config.json; its weights are in 16 bits.
        device: where they go.

    Raises:
        RequestError: the model's layers cannot be in int8, or not on this device.
    """
    problems = refusals(name, config, "rotated int8", fits=False, obstacle=INT8_ARITHMETIC.obstacle(device))
    if problems := problems + reads_weights_directly(name, config, "int8"):
        raise RequestError(problems)
    return {"quantization_config": Int8Config()}


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):  # type: ignore[misc]
    """Tells transformers to load int8 layers."""

    def __init__(self, **further: Any) -> None:
        self.quant_method = METHOD


@register_quantizer(METHOD)
class Int8Quantizer(EightBitQuantizer):
    """Puts int8 layers into the empty model, and rotates and rounds weights as they are read."""

    layer = Int8Linear
    stack = Int8Stack
