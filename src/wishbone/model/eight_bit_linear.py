"""A linear layer whose frozen weight is kept in 8 bits, with scales of rows or, in FP8, of blocks.

`ops/frozen_linear/eight_bit.py` says what it computes. To PEFT it is an `nn.Linear` with a `compute_dtype`, so it takes
LoRA as any linear layer does. Its weight holds codes, and code that reads them as values computes nonsense. PyTorch
refuses to add to e4m3, which stops merging in place; DoRA and some initializations of LoRA are refused here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wishbone.errors import RequestError
from wishbone.ops.fp8_quantize import E4M3, QuantizedRows, quantize_rows
from wishbone.ops.frozen_linear import EightBitWeight, FP8BlockWeight, FP8Weight, Int8Weight, frozen_linear

ROWS, BLOCKS = "weight_scale", "weight_scale_inv"
"""Names of the scales of rows and of blocks in checkpoints; both multiply the codes, in spite of the second name."""
STARTS_WITHOUT_WEIGHTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initializations of a LoRA adapter that do not read the weights of its base."""


class EightBitLinear(nn.Linear):
    """y = x W^T + b, with W as codes of one byte and their scales.

    Args:
        in_features, out_features, bias: as of `nn.Linear`.
        dtype: of the bias and, as PEFT sees it, of the arithmetic.
        scale: name of the scales' parameter, `ROWS` or `BLOCKS`.
        scale_shape: [out_features, 1] if None.
        weight_dtype: of the weight until it is loaded; None is that of the codes.
        device: "meta" for a layer that is loaded later.

    Attributes:
        weight: [out_features, in_features], of `codes`; not trained.
        weight_scale: [out_features, 1], float32; or weight_scale_inv: a scale a block of 128 x 128.
    """

    form: ClassVar[str]
    """What messages call it."""
    codes: ClassVar[torch.dtype]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: torch.dtype = torch.float32,
        scale: str = ROWS,
        scale_shape: tuple[int, ...] | None = None,
        weight_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.compute_dtype = dtype
        self.rounds_input = True
        empty = torch.empty((out_features, in_features), dtype=weight_dtype or self.codes, device=device)
        self.weight = nn.Parameter(empty, requires_grad=False)
        scales = torch.empty(
            (out_features, 1) if scale_shape is None else scale_shape, dtype=torch.float32, device=device
        )
        self.register_parameter(scale, nn.Parameter(scales, requires_grad=False))
        own = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device)) if bias else None
        self.register_parameter("bias", own)

    @property
    @abstractmethod
    def frozen_weight(self) -> EightBitWeight | FP8BlockWeight:
        """The weight as `ops/frozen_linear` takes it."""

    @staticmethod
    @abstractmethod
    def quantized(weight: Tensor) -> QuantizedRows:
        """Return codes and scales for a weight [out_features, in_features] of 16 or 32 bits."""

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b, [..., out_features], in the dtype of x [..., in_features], or autocast's."""
        weight = self.frozen_weight
        if self.rounds_input:
            return frozen_linear(input, weight, self.bias)
        return F.linear(input, weight.dense().to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))

    def dequantized(self, dtype: torch.dtype) -> nn.Linear:
        """Return a plain layer with the weights that the codes stand for."""
        layer = nn.Linear(self.in_features, self.out_features, False, device="meta")
        layer.weight = nn.Parameter(self.frozen_weight.dense().to(dtype))
        bias = None if self.bias is None else nn.Parameter(self.bias.detach().to(dtype))
        layer.register_parameter("bias", bias)
        return layer.train(self.training)

    def settle(self) -> None:
        """Freeze the layer once its codes and scales are loaded."""
        self.weight = nn.Parameter(self.weight.detach().contiguous(), requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EightBitLinear:
        """Move codes and scales with the module, but never cast them."""
        kept = {id(self.weight), *(id(p) for name, p in self._parameters.items() if name in (ROWS, BLOCKS))}

        def uncast(tensor: Tensor) -> Tensor:
            if id(tensor) not in kept:
                return fn(tensor)
            return fn(tensor.detach().view(torch.uint8)).view(tensor.dtype)

        result: EightBitLinear = super()._apply(uncast, recurse)
        return result


class FP8Linear(EightBitLinear):
    """W = scale * weight in e4m3, with a scale a row or a block of 128 x 128."""

    form, codes = "FP8", E4M3

    @property
    def frozen_weight(self) -> FP8Weight | FP8BlockWeight:
        """The weight as `ops/frozen_linear` takes it."""
        if hasattr(self, BLOCKS):
            return FP8BlockWeight(self.weight, getattr(self, BLOCKS))
        return FP8Weight(self.weight, getattr(self, ROWS))

    @staticmethod
    def quantized(weight: Tensor) -> QuantizedRows:
        """Return codes and scales for a weight [out_features, in_features] of 16 or 32 bits."""
        return quantize_rows(weight)

    def settle(self) -> None:
        """Bring the scales of a checkpoint into one of the two forms, in float32, and freeze the layer.

        One scale for all rows becomes one for each row.
        """
        name = BLOCKS if hasattr(self, BLOCKS) else ROWS
        scale = getattr(self, name).detach().float()
        delattr(self, name)
        if scale.numel() == 1 and (name == ROWS or scale.dim() < 2):
            scale = scale.view(1).expand(self.out_features)
        if scale.dim() == 1:
            scale = scale[:, None]
        by_rows = scale.shape == (self.out_features, 1)
        self.register_parameter(ROWS if by_rows else BLOCKS, nn.Parameter(scale.contiguous(), requires_grad=False))
        super().settle()

    def extra_repr(self) -> str:
        """Return sizes and the form of the scales, for printing."""
        return f"{super().extra_repr()}, scales={'128x128' if hasattr(self, BLOCKS) else 'rows'}"


class Int8Linear(EightBitLinear):
    """W H / sqrt(B) = scale * weight in int8, with a scale a row; H rotates along a row."""

    form, codes = "int8", torch.int8
    rotated = True

    @property
    def frozen_weight(self) -> Int8Weight:
        """The weight as `ops/frozen_linear` takes it."""
        return Int8Weight(self.weight, getattr(self, ROWS))

    @staticmethod
    def quantized(weight: Tensor) -> QuantizedRows:
        """Return codes and scales for a weight [out_features, in_features] of 16 or 32 bits."""
        return quantize_rows(weight, form=Int8Weight.form_of_input(weight.shape[1]))


@contextmanager
def inputs_not_rounded(model: nn.Module) -> Iterator[None]:
    """Context in which 8-bit layers do not round their inputs, so that their outputs depend on inputs continuously.

    Rounding to 8 bits turns a tiny difference between two ways to compute the same into a large one, so a comparison of
    two ways needs this.
    """
    layers = [module for module in model.modules() if isinstance(module, EightBitLinear)]
    for layer in layers:
        layer.rounds_input = False
    try:
        yield
    finally:
        for layer in layers:
            layer.rounds_input = True


def refuse_readers_of_codes(model: object, adapters: Mapping[str, Any]) -> None:
    """Refuse adapters that read the elements of a base's weight, where these are 8-bit codes.

    Args:
        model: anything; without 8-bit layers nothing is refused.
        adapters: PEFT configurations of its adapters by name; one may be None.

    Raises:
        RequestError: an adapter uses DoRA, or is initialized from a decomposition of the weights.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    form = next((module.form for module in modules if isinstance(module, EightBitLinear)), None)
    problems = []
    for name, config in adapters.items() if form else ():
        if getattr(config, "use_dora", False):
            problems.append(
                f"adapter {name!r} uses DoRA, which cannot read the base's weights in {form}; leave use_dora out, or "
                "load the model in 4 or 16 bits"
            )
        if (start := getattr(config, "init_lora_weights", True)) not in STARTS_WITHOUT_WEIGHTS:
            problems.append(
                f"adapter {name!r} has init_lora_weights={start!r}, which cannot read the base's weights in {form}; "
                "leave init_lora_weights out, or load the model in 16 bits"
            )
    if problems:
        raise RequestError(problems)
