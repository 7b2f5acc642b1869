"""Weights of a model that is on the device, turned into codes there."""

from __future__ import annotations

from typing import Any


def in_codes_of(model: Any, weights: str) -> Any:
    """Return the model with its linear layers and experts in codes, as `load_model` makes them from files."""
    import torch
    from torch import nn

    from wishbone.model.eight_bit_layers import layers_for_8_bits
    from wishbone.model.eight_bit_linear import ROWS, EightBitLinear, FP8Linear, Int8Linear
    from wishbone.model.quantization import settle_quantized_layers
    from wishbone.model.quantized_experts import in_codes, is_stack
    from wishbone.ops.expert_mlp import FP8Stack, Int8Stack, NF4Stack

    eight: dict[str, type[EightBitLinear]] = {"fp8": FP8Linear, "int8": Int8Linear}
    stacks = {"fp8": FP8Stack, "int8": Int8Stack, "nf4": NF4Stack}
    for name in layers_for_8_bits(model, weights):
        old = model.get_submodule(name)
        sizes = old.in_features, old.out_features, old.bias is not None
        new: Any
        if weights in eight:
            new = eight[weights](*sizes, dtype=old.weight.dtype, device="meta")
            rows = new.quantized(old.weight.detach())
            new.weight = nn.Parameter(rows.values, requires_grad=False)
            new.register_parameter(ROWS, nn.Parameter(rows.scale, requires_grad=False))
        else:
            import bitsandbytes

            form = {"quant_type": "nf4", "compress_statistics": True}
            new = bitsandbytes.nn.Linear4bit(*sizes, compute_dtype=old.weight.dtype, device="meta", **form)
            codes = bitsandbytes.nn.Params4bit(old.weight.detach().cpu(), requires_grad=False, **form)
            new.weight = codes.to(old.weight.device)
        if old.bias is not None:
            new.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
        model.set_submodule(name, new)
    for name in [name for name, _ in model.named_parameters() if is_stack(model, name)]:
        module, _, own = name.rpartition(".")
        stack = in_codes(model.get_parameter(name), stacks[weights])
        model.get_submodule(module).register_parameter(own, stack)
    if weights == "nf4":
        model.is_loaded_in_4bit = True  # by which PEFT knows 4-bit layers
        settle_quantized_layers(model, torch.bfloat16)
    return model
