"""Frozen weights in int8 after a rotation: half the memory of 16 bits, and int8 products on every GPU since Turing.

Truer than FP8, because the rotation leaves no outliers (docs/eight-bits.md). It is not bitsandbytes' LLM.int8, which
keeps outlier columns in 16 bits and turns codes back into 16 bits for the gradient. A 16-bit checkpoint is rotated and
rounded while it is read (`eight_bit.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from wishbone.errors import RequestError
from wishbone.model.eight_bit import READ_DIRECTLY, EightBitQuantizer
from wishbone.model.eight_bit_linear import Int8Linear
from wishbone.model.quantization import refusals
from wishbone.ops.expert_mlp import Int8Stack

METHOD = "wishbone_int8"
CAPABILITY = (7, 5)
"""Least compute capability of GPUs whose tensor cores multiply int8."""


def int8_obstacle(device: torch.device) -> str | None:
    """Return why there are no int8 products on `device`, in one phrase that ends with the remedy; otherwise None."""
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        kind = "AMD GPUs" if device.type == "cuda" else f"{device.type!r} devices"
        return f"there are no int8 products for {kind} here; load the model in 16 bits"
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        return (
            f"this GPU has compute capability {found[0]}.{found[1]}, and int8 tensor cores begin with "
            f"{CAPABILITY[0]}.{CAPABILITY[1]} (Turing); load the model in 4 bits for the least memory, or in 16 bits"
        )
    if find_spec("triton") is None:
        return "its kernels need Triton, which is not installed; install it with `pip install triton`"
    return None


def int8_options(name: str, config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the options that make transformers load linear layers in rotated int8.

    Args:
        name: of the model, for errors.
        config: its config.json; its weights are in 16 bits.
        device: where they go.

    Raises:
        RequestError: the model's layers cannot be in int8, or not on this device.
    """
    problems = refusals(name, config, "rotated int8", fits=False, obstacle=int8_obstacle(device))
    if config.get("model_type") in READ_DIRECTLY:
        problems.append(
            f"{name!r}: layers of {config['model_type']!r} read weights of other layers, so these cannot be in int8; "
            "load it in 16 bits"
        )
    if problems:
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
