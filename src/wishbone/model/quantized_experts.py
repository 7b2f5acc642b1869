"""Experts in FP8, int8 or NF4: which parameters they are, and how transformers makes codes of them as it reads.

transformers 5 keeps the experts of a layer as two stacked parameters, and its own methods for FP8 and 4 bits look at
linear layers alone. So experts, which are nine tenths of most mixtures, would stay in 16 bits. Here each stack becomes
a `QuantizedStack` (`ops/expert_mlp/quantized.py`) as soon as it is on the device, which never holds more than the
quantized model and one stack in 16 bits. To all other code it is a frozen 16-bit parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import auto
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from wishbone.errors import RequestError
from wishbone.ops.expert_mlp import FP8BlockStack, NF4Stack, QuantizedStack
from wishbone.ops.expert_mlp.quantized import BLOCK
from wishbone.ops.fp8_quantize import E4M3
from wishbone.ops.frozen_linear.fp8 import BLOCK as FP8_BLOCK

METHOD = "bitsandbytes_4bit"
"""transformers' name of its quantizer to 4 bits."""
SCALES = "_scale_inv"
"""What the name of a stack's scales ends with, as transformers puts them together from a checkpoint."""


def is_stack(model: nn.Module, name: str) -> bool:
    """Return whether a parameter of a model holds the experts of a layer, in a form that can be quantized.

    Args:
        model: a transformers model.
        name: of the parameter.
    """
    module_name, _, own = name.rpartition(".")
    try:
        module = model.get_submodule(module_name)
    except AttributeError:
        return False
    weight = getattr(module, own, None)
    marked = hasattr(module, "is_transposed") and hasattr(module, "has_gate")  # transformers says how the stacks lie
    return marked and isinstance(weight, nn.Parameter) and weight.dim() == 3 and weight.numel() % BLOCK == 0


def plain_stacks(model: nn.Module) -> list[Tensor]:
    """Return the stacked weights of experts that are not in codes."""
    stacks = [weight for name, weight in model.named_parameters() if weight.dim() == 3 and "expert" in name]
    return [weight for weight in stacks if weight.is_floating_point() and not isinstance(weight, QuantizedStack)]


def expect_stored_codes(model: nn.Module) -> None:
    """Make room for a checkpoint's codes and scales of blocks in a model whose weights are not there yet.

    transformers puts the experts of a layer together from parts named `experts.N.gate_proj.weight`, and their scales,
    `experts.N.gate_proj.weight_scale_inv`, in the same way.

    Raises:
        RequestError: the experts are not whole blocks.
    """
    for name in [name for name, _ in model.named_parameters() if is_stack(model, name)]:
        module, own = _place(model, name)
        count, rows, columns = module.get_parameter(own).shape
        parts = 2 if own.startswith("gate_up") else 1  # matrices that lie one under the other
        if rows % (parts * FP8_BLOCK) or columns % FP8_BLOCK:
            raise RequestError(
                f"FP8 experts of {rows} x {columns} ({name}) do not consist of blocks of {FP8_BLOCK} x {FP8_BLOCK}; "
                "name the 16-bit model it was made from"
            )
        codes = torch.empty((count, rows, columns), dtype=E4M3, device="meta")
        scale = torch.empty((count, rows // FP8_BLOCK, columns // FP8_BLOCK), dtype=torch.float32, device="meta")
        module.register_parameter(own, nn.Parameter(codes, requires_grad=False))
        module.register_parameter(own + SCALES, nn.Parameter(scale, requires_grad=False))


def settle_stored_codes(model: nn.Module, dtype: torch.dtype) -> None:
    """Put the codes and scales that were read for `expect_stored_codes` together; other code sees them in `dtype`."""
    for name in [name for name, _ in model.named_parameters() if name.endswith(f"proj{SCALES}")]:
        module, own = _place(model, name.removesuffix(SCALES))
        codes, scale = module.get_parameter(own).detach(), module.get_parameter(own + SCALES).detach()
        parts = {"codes": codes.contiguous(), "scale": scale.float().contiguous()}
        stack = FP8BlockStack(codes.shape, dtype, parts)
        delattr(module, own + SCALES)
        module.register_parameter(own, nn.Parameter(stack, requires_grad=False))


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that has a parameter, and the parameter's name in it."""
    module, _, own = name.rpartition(".")
    return model.get_submodule(module), own


def in_codes(weight: Tensor, form: type[QuantizedStack]) -> nn.Parameter:
    """Return a parameter that holds the experts of a layer in codes."""
    return nn.Parameter(form.of(weight), requires_grad=False)


@torch.no_grad()
def experts_in_values(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Turn the experts of a model into the values that their codes stand for, for good, in `dtype` or their own."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if isinstance(weight, QuantizedStack):
                dense = weight.dense()
                module._parameters[name] = nn.Parameter(dense.to(dtype or dense.dtype), requires_grad=False)


class _ToNF4(ConversionOps):  # type: ignore[misc]
    """Turns the stacks of a model into NF4, and leaves linear layers to bitsandbytes' own operation."""

    def __init__(self, layers: ConversionOps) -> None:
        self._layers = layers

    def convert(
        self, input_dict: dict[str, Any], model: PreTrainedModel | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return the tensors by name."""
        result: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            if model is not None and is_stack(model, name):
                result[name] = in_codes(value[0] if isinstance(value, list) else value, NF4Stack)
            else:
                result |= self._layers.convert({name: value}, model=model, **kwargs)
        return result


class _NF4Quantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
    """bitsandbytes' quantizer, for stacks of experts, too."""

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Return whether the parameter becomes codes."""
        own: bool = super().param_needs_quantization(model, param_name, **kwargs)
        return own or (not self.pre_quantized and is_stack(model, param_name))

    def get_quantize_ops(self) -> ConversionOps:
        """Return the operation on such a parameter."""
        return _ToNF4(super().get_quantize_ops())

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        whole: PreTrainedModel = super()._dequantize(model, dtype)
        experts_in_values(whole, dtype)
        return whole


@contextmanager
def experts_in_nf4() -> Iterator[None]:
    """Context in which transformers quantizes the experts of models that it loads in 4 bits, too."""
    methods = auto.AUTO_QUANTIZER_MAPPING
    before = methods[METHOD]
    methods[METHOD] = _NF4Quantizer
    try:
        yield
    finally:
        methods[METHOD] = before
