"""A large model with random weights in 8 or 4 bits, made on the device one linear layer at a time.

A 70B model takes 131 GiB in 16 bits, more than a device or a host may have. Each weight is drawn in bfloat16 where it
will stay, rounded at once, and freed. The layers are those that loading a checkpoint in this precision would give.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM

from benchmarks.harness.random_model import config_of
from benchmarks.harness.systems import Weights
from benchmarks.harness.workloads import SIZES

DEVIATION = 0.02
"""Standard deviation of weights, as in transformers' `initializer_range`."""


def quantized_random_model(size: str, weights: Weights, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a model in that shape with layers in "fp8" or "nf4"; the same weights every time on one kind of device.

    Args:
        size: a key of `SIZES`.
        weights: precision of the linear layers.
        device: where they are drawn and stay.
        dtype: of embeddings, head and norms.
    """
    quantizer = _quantizer(weights, dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(SIZES[size], dtype)).to(dtype)
    quantizer.preprocess_model(model, dtype=dtype, device_map={"": device}, checkpoint_files=[])
    generator = torch.Generator(device).manual_seed(0)
    for module in model.modules():
        _fill(module, generator, dtype)
    with device:
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.tie_weights()
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, f"without values: {left[:3]}"
    return model.eval()


def _quantizer(weights: Weights, dtype: torch.dtype) -> Any:
    """Return transformers' quantizer that loading in this precision would use."""
    if weights == "fp8":
        from wishbone.model.fp8 import FP8Config, FP8Quantizer

        return FP8Quantizer(FP8Config())
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    asked = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return AutoHfQuantizer.from_config(asked, pre_quantized=False)


def _fill(module: nn.Module, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Give a module's own parameters their values: norms ones, weights random ones, rounded as the layer asks."""
    for name, parameter in list(module._parameters.items()):
        if parameter is None or not parameter.is_meta or name != "weight":
            continue
        if parameter.dim() == 1:
            values = torch.ones(parameter.shape, dtype=dtype, device=generator.device)
        else:
            shape = (module.out_features, module.in_features) if isinstance(module, nn.Linear) else parameter.shape
            values = torch.empty(shape, dtype=dtype, device=generator.device)
            values.normal_(0, DEVIATION, generator=generator)
        _set(module, values)


def _set(module: nn.Module, values: torch.Tensor) -> None:
    from wishbone.model.eight_bit_linear import ROWS, EightBitLinear

    if isinstance(module, EightBitLinear):
        rows = module.quantized(values)
        module.weight = nn.Parameter(rows.values, requires_grad=False)
        module.register_parameter(ROWS, nn.Parameter(rows.scale, requires_grad=False))
    elif hasattr(module.weight, "quant_state"):
        weight: Any = module.weight
        module.weight = type(weight)(values, requires_grad=False, **weight.__dict__).to(values.device)
    else:
        module.weight = nn.Parameter(values)
