"""Frozen weights of experts kept as codes in FP8, int8 or NF4, which any function of PyTorch reads as their values W.

transformers keeps the experts of a layer as one parameter [experts, rows, columns] and reads it in many ways: expert by
expert, in one grouped product, with an adapter added to it by PEFT. A `QuantizedStack` has the shape and the dtype of
that parameter; a function that is called with one gets W, turned into 16 bits for that call. So whatever code reads the
parameter computes with W, and takes memory for one layer's W while it does.

    FP8    W_erc = s_er q_erc,  one scale a row, or one a block of 128 x 128, as published  (`frozen_linear/fp8.py`)
    int8   rotated, one scale a row                                                         (`rotated.py`)
    NF4    W_n = c[code_n] s_{n / 64},  over all experts in turn    (`frozen_linear/nf4.py`)

`expert_mlp` turns a layer's W into 16 bits in scratch memory, once for policy and reference forward and once backward,
and multiplies as with 16-bit weights: inputs are not rounded. Tokens go to few experts each, so a product over codes
would read each byte once as well; what turning costs is 3 bytes of memory traffic an element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from wishbone.ops.fp8_quantize import E4M3, quantize_rows
from wishbone.ops.frozen_linear import FP8BlockWeight, NF4Weight
from wishbone.ops.frozen_linear.scratch import scratch

BLOCK, BLOCKS = 64, 256
"""Elements of NF4 that share a scale, and scales that share one of their own."""


class QuantizedStack(Tensor):
    """A parameter [experts, rows, columns] that is kept as codes; it has no gradient.

    Args:
        shape: of the values.
        dtype: of the values, as other code sees them.
        parts: the tensors that hold them, by the names in `PARTS`.
    """

    PARTS: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def __new__(cls, shape: torch.Size, dtype: torch.dtype, parts: dict[str, Tensor]) -> QuantizedStack:  # noqa: D102
        device = next(iter(parts.values())).device
        made: QuantizedStack = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, dtype=dtype, device=device
        )
        return made

    def __init__(self, shape: torch.Size, dtype: torch.dtype, parts: dict[str, Tensor]) -> None:
        for name in self.PARTS:
            setattr(self, name, parts[name])

    @classmethod
    def of(cls, weight: Tensor) -> QuantizedStack:
        """Return a weight [experts, rows, columns] in this form."""
        raise NotImplementedError

    def matrices(self, dtype: torch.dtype) -> Tensor:
        """Return W in `dtype`, on CUDA in scratch memory, until the next call for the device."""
        return self.dense().to(dtype)

    def dense(self) -> Tensor:
        """Return W in the dtype that it is seen in."""
        raise NotImplementedError

    def of_expert(self, expert: int) -> Tensor:
        """Return W of one expert, [rows, columns]."""
        return self.dense()[expert]

    def data_ptr(self) -> int:
        """Return where the codes lie."""
        return self._parts()[self.PARTS[0]].data_ptr()

    def __repr__(self) -> str:  # type: ignore[override]
        """Return form and sizes; the values would have to be computed."""
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedStack:
        """Return a copy with codes of its own."""
        return self._with(lambda part: part.clone())

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        """Return the names of the tensors inside, by which PyTorch moves modules with such parameters."""
        return list(self.PARTS), (self.shape, self.dtype)

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], context: Any, *_: Any) -> QuantizedStack:
        """Return the stack that the tensors make."""
        shape, dtype = context
        return cls(shape, dtype, parts)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Run a function on W; what moves or copies a stack as a whole moves or copies its codes."""
        kwargs = kwargs or {}
        moved = _MOVES.get(function)
        if moved is not None and isinstance(args[0], QuantizedStack):
            return moved(args[0], kwargs)
        if function is torch.ops.aten.select.int and isinstance(args[0], QuantizedStack) and args[1] == 0:
            return args[0].of_expert(args[2])
        if function is torch.ops.aten.copy_.default and isinstance(args[0], QuantizedStack):
            raise NotImplementedError("weights in codes are frozen and cannot be written to")
        return function(*_values_of(args), **_values_of(kwargs))

    def _parts(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.PARTS}

    def _with(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> QuantizedStack:
        parts = {name: change(part) for name, part in self._parts().items()}
        return type(self)(self.shape, dtype or self.dtype, parts)


class FP8Stack(QuantizedStack):
    """W = scale q, one scale a row.

    Attributes:
        codes: q [experts, rows, columns], float8_e4m3fn, contiguous.
        scale: [experts, rows, 1], float32.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("codes", "scale")
    codes: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> FP8Stack:
        """Return a weight [experts, rows, columns] in FP8, quantized expert by expert."""
        codes = torch.empty(weight.shape, dtype=E4M3, device=weight.device)
        scale = torch.empty(*weight.shape[:2], 1, dtype=torch.float32, device=weight.device)
        for expert, matrix in enumerate(weight.detach()):
            rows = quantize_rows(matrix.contiguous())
            codes[expert], scale[expert] = rows.values, rows.scale
        return cls(weight.shape, weight.dtype, {"codes": codes, "scale": scale})

    def matrices(self, dtype: torch.dtype) -> Tensor:
        """Return W in `dtype`, on CUDA in scratch memory."""
        if not self.codes.is_cuda or dtype == torch.float64:
            return self._product(self.codes, self.scale, dtype)
        from wishbone.ops.expert_mlp.triton import dequantize_rows

        return dequantize_rows(self.codes, self.scale, scratch(tuple(self.shape), dtype, self.codes.device))

    def dense(self) -> Tensor:
        """Return W in the dtype that it is seen in."""
        return self._product(self.codes, self.scale, self.dtype)

    def of_expert(self, expert: int) -> Tensor:
        """Return W of one expert."""
        return self._product(self.codes[expert], self.scale[expert], self.dtype)

    @staticmethod
    def _product(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        precise = torch.promote_types(dtype, torch.float32)
        return (codes.to(precise) * scale.to(precise)).to(dtype)


class FP8BlockStack(QuantizedStack):
    """W = scale q, one scale a block of 128 x 128.

    Attributes:
        codes: q [experts, rows, columns], float8_e4m3fn, contiguous; rows and columns are multiples of 128.
        scale: [experts, rows / 128, columns / 128], float32.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("codes", "scale")
    codes: Tensor
    scale: Tensor

    def matrices(self, dtype: torch.dtype) -> Tensor:
        """Return W in `dtype`, on CUDA in scratch memory."""
        if self.codes.is_cuda and dtype != torch.float64:
            return self._weight(self.codes, self.scale).matrix(dtype).view(self.shape)
        return self._turned(self.codes, self.scale, dtype)

    def dense(self) -> Tensor:
        """Return W in the dtype that it is seen in."""
        return self._turned(self.codes, self.scale, self.dtype)

    def of_expert(self, expert: int) -> Tensor:
        """Return W of one expert."""
        return self._turned(self.codes[expert], self.scale[expert], self.dtype)

    @classmethod
    def _turned(cls, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return cls._weight(codes, scale).dense().view(codes.shape).to(dtype)

    @staticmethod
    def _weight(codes: Tensor, scale: Tensor) -> FP8BlockWeight:
        """The rows of all experts as one matrix; as they are whole blocks, so are their scales."""
        return FP8BlockWeight(codes.view(-1, codes.shape[-1]), scale.view(-1, scale.shape[-1]))


class NF4Stack(QuantizedStack):
    """W in NF4, with 8-bit scales of blocks of 64 and 32-bit scales of 256 of those, as bitsandbytes keeps them.

    Attributes:
        codes: uint8, two codes a byte.
        absmax: codes of the scales, uint8.
        code_values, scale_values: [16] and [256], float32: what codes of weights and of scales stand for.
        scale_absmax, offset: float32: the scales of the scales, and what is added to them.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("codes", "absmax", "code_values", "scale_values", "scale_absmax", "offset")
    codes: Tensor
    absmax: Tensor
    code_values: Tensor
    scale_values: Tensor
    scale_absmax: Tensor
    offset: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> NF4Stack:
        """Return a weight [experts, rows, columns], a multiple of 64 elements, in NF4."""
        from bitsandbytes.functional import quantize_4bit

        blocks = weight.detach().reshape(-1, BLOCK)
        codes, state = quantize_4bit(blocks, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
        inner = state.state2
        parts = dict(
            zip(cls.PARTS, (codes, state.absmax, state.code, inner.code, inner.absmax, state.offset), strict=True)
        )
        return cls(weight.shape, weight.dtype, parts)

    def matrices(self, dtype: torch.dtype) -> Tensor:
        """Return W in `dtype`, on CUDA in scratch memory."""
        return self._weight().matrix(dtype).view(self.shape)

    def dense(self) -> Tensor:
        """Return W in the dtype that it is seen in."""
        return self._weight().dense().to(self.dtype).view(self.shape)

    def of_expert(self, expert: int) -> Tensor:
        """Return W of one expert, whose scales are those of whole blocks if its size allows it."""
        count, elements = self.shape[0], self.shape[1] * self.shape[2]
        if elements % (BLOCK * BLOCKS):
            return self.dense()[expert]
        parts = {
            name: part.flatten().chunk(count)[expert] if name in ("codes", "absmax", "scale_absmax") else part
            for name, part in self._parts().items()
        }
        return NF4Stack(torch.Size((1, *self.shape[1:])), self.dtype, parts).dense()[0]

    def _weight(self) -> NF4Weight:
        from bitsandbytes.functional import QuantState

        inner = QuantState(self.scale_absmax, code=self.scale_values, blocksize=BLOCKS, dtype=torch.float32)
        shape = torch.Size((self.shape.numel() // BLOCK, BLOCK))
        dtype = self.dtype if self.dtype.itemsize < 8 else torch.float32  # bitsandbytes knows no float64
        state = QuantState(self.absmax, shape, self.code_values, BLOCK, "nf4", dtype, self.offset, inner)
        return NF4Weight(self.codes, state)


def _values_of(value: Any) -> Any:
    """Return a value, or a list, tuple or dictionary of values, with W for each stack."""
    if isinstance(value, QuantizedStack):
        return value.dense()
    if isinstance(value, dict):
        return {key: _values_of(one) for key, one in value.items()}
    return type(value)(map(_values_of, value)) if type(value) in (list, tuple) else value


def _copied(stack: QuantizedStack, options: dict[str, Any]) -> QuantizedStack:
    """Return a stack on another device, or seen in another dtype; codes and scales keep their values."""
    device, dtype = options.get("device"), options.get("dtype")
    return stack._with(lambda part: part.to(device, non_blocking=options.get("non_blocking", False)), dtype)


_MOVES: dict[Any, Callable[[QuantizedStack, dict[str, Any]], QuantizedStack]] = {
    torch.ops.aten.detach.default: lambda stack, _: stack._with(lambda part: part),
    torch.ops.aten.alias.default: lambda stack, _: stack._with(lambda part: part),
    torch.ops.aten.clone.default: lambda stack, _: stack._with(lambda part: part.clone()),
    torch.ops.aten._to_copy.default: _copied,
    torch.ops.aten.empty_like.default: lambda stack, options: stack._with(
        lambda part: torch.empty_like(part, device=options.get("device"))
    ),
}
"""What takes a stack as a whole."""
