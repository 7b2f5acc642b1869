"""Frozen weights in 4 bits: NF4 with double quantization (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3).

A weight is one of 16 quantiles of a normal distribution times the scale of its block of 64, and the scales are 8-bit
codes themselves:

    w = s_block q[code],    s_block = s2 c[code2] + mean

bitsandbytes keeps the codes and multiplies by the values they stand for, in the forward pass and in the backward pass.
So a 4-bit model is an ordinary model with other weights, and training an adapter on it is exact with respect to those.
Embeddings, output head and norms are not quantized.

On CPUs with AVX512-BF16 bitsandbytes would break that: a layer that runs in evaluation mode is repacked for good, with
scales and products rounded to bfloat16. `settle_quantized_layers` prevents it.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, Mxfp4Config, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from wishbone.errors import RequestError
from wishbone.model.quantized_experts import plain_stacks
from wishbone.ops.expert_mlp import QuantizedStack

INSTALL = "install it with `pip install -U bitsandbytes`"
MXFP4 = "mxfp4"

logger = logging.getLogger(__name__)


def quantization_obstacle(device: torch.device) -> str | None:
    """Return why weights cannot be quantized for `device`, in one phrase that ends with the remedy; otherwise None."""
    if find_spec("bitsandbytes") is None:
        return f"bitsandbytes is not installed; {INSTALL}"
    if not is_bitsandbytes_available():
        return f"the installed bitsandbytes is too old for this transformers; {INSTALL}"
    if device.type not in ("cpu", "cuda"):
        return f"there is no 4-bit arithmetic for {device.type!r} devices here; use a CUDA GPU or the CPU"
    return None


def quantization_config(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how transformers quantizes while it loads: to NF4 (4 bits) or LLM.int8 (8 bits), computing in `dtype`."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def stored_method(config: Mapping[str, Any]) -> str | None:
    """Return the quantization method of a checkpoint with this config.json, None if its weights are not quantized."""
    method: str | None = (config.get("quantization_config") or {}).get("quant_method")
    return method


def refusals(name: str, config: Mapping[str, Any], form: str, *, fits: bool, obstacle: str | None) -> list[str]:
    """Return why a checkpoint cannot be loaded with quantized weights.

    Args:
        name: of the model.
        config: its config.json.
        form: of the weights that is asked for, such as "4 bits".
        fits: whether the checkpoint is of that form already, if it is quantized.
        obstacle: why the device cannot hold the form, or None.
    """
    method = stored_method(config)
    if method and not fits:
        return [
            f"{name!r} is quantized already, with {method}, and cannot be loaded in {form}; name the model that it was "
            "made from"
        ]
    kept = "its weights are quantized" if method else f"it cannot be loaded in {form}"
    return [f"{name!r}: {kept}, and {obstacle}"] if obstacle else []


def quantization_options(
    name: str, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, *, bits: int
) -> dict[str, Any] | None:
    """Return the options that make transformers load linear layers in 4 or 8 bits, None if they stay whole.

    Args:
        name: of the model, for errors.
        config: its config.json; its weights may be quantized already.
        device: where the weights go.
        dtype: of the arithmetic.
        bits: asked for; 0 for none.

    Raises:
        RequestError: the checkpoint is of another form, or this device cannot hold its form.
    """
    method = stored_method(config)
    if not bits and method == MXFP4:
        logger.warning(
            "%s stores experts in MXFP4 (4.25 bits), whose kernels do not train: they are turned into %s, which takes "
            "%.1f times their memory.",
            name,
            str(dtype).removeprefix("torch."),
            8 * dtype.itemsize / 4.25,
        )
        return {"quantization_config": Mxfp4Config(dequantize=True)}
    if not bits and method != "bitsandbytes":
        return None
    fits, obstacle = method == "bitsandbytes", quantization_obstacle(device)
    if problems := refusals(name, config, f"{bits} bits", fits=fits, obstacle=obstacle):
        raise RequestError(problems)
    return {} if method else {"quantization_config": quantization_config(bits, dtype)}


def settle_quantized_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Make every 4-bit layer compute in `dtype`, and keep its weights as they are in evaluation mode."""
    layers = _four_bit_layers(model)
    for layer in layers:
        layer.compute_dtype, layer.compute_type_is_set = dtype, True
    stacked = plain_stacks(model)
    if layers and stacked:
        logger.warning(
            "Stacked weights of experts stay as they are, %.1f GiB: transformers does not say how they lie, or the "
            "checkpoint has them so.",
            sum(weight.nbytes for weight in stacked) / 2**30,
        )
    forbid_repacking(model)


def forbid_repacking(model: nn.Module) -> None:
    """Keep the weights of every 4-bit layer as they are in evaluation mode, whoever loaded the model."""
    for layer in _four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False


def is_quantized(model: nn.Module) -> bool:
    """Return whether some weights of the model are kept in 4 or 8 bits."""
    codes = (torch.uint8, torch.int8, torch.float8_e4m3fn)
    return any(
        isinstance(weight, QuantizedStack) or weight.dtype in codes or getattr(weight, "quant_state", None)
        for weight in model.parameters()
    )


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """Return an ordinary model with the values that a quantized model's codes stand for; the given model is used up.

    It is a new model around the same tensors, because transformers cannot save a model that it loaded from codes.
    """
    whole: Any = model.dequantize()
    with torch.device("meta"):
        plain: PreTrainedModel = type(whole)(copy.deepcopy(whole.config))
    for name, tensor in [*whole.named_parameters(remove_duplicate=False), *whole.named_buffers(remove_duplicate=False)]:
        module, _, own = name.rpartition(".")
        setattr(plain.get_submodule(module), own, tensor)
    plain.generation_config = whole.generation_config
    return plain.eval()


def _four_bit_layers(model: nn.Module) -> list[Any]:
    if "bitsandbytes" not in sys.modules:
        return []
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]
