"""A frozen weight in 4 bits, as bitsandbytes keeps it: dequantized into scratch memory before each product.

Dequantizing writes 2 bytes a number and reads half a byte and the scales: 0.15 GB, 0.04 ms of an H200's memory for
14,336 x 4,096, where the product with 8,192 tokens takes 1.3 ms. Activations are not rounded, and forward and backward
use the same numbers, so this is an ordinary linear layer with the weights that the codes stand for.

On the current CUDA device a kernel of ours does it in one pass (`nf4_triton.py`), where the codes are packed in the
usual way and made-up codes come out as bitsandbytes has them; else bitsandbytes does.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.frozen_linear.scratch import scratch
from wishbone.ops.frozen_linear.weight import InputForm, Prepared

logger = logging.getLogger(__name__)


class NF4Weight:
    """W as 4-bit codes (NF4 or FP4) with their scales.

    Args:
        weight: bitsandbytes' `Params4bit`, quantized; or its codes.
        quant_state: of the codes; None is that of `weight`.
    """

    input_form: InputForm = "plain"

    def __init__(self, weight: Tensor, quant_state: Any = None) -> None:
        state: Any = weight.quant_state if quant_state is None else quant_state  # type: ignore[attr-defined]
        self.codes = weight.detach().view(-1, 1)
        self.state = state
        self.out_features, self.in_features = state.shape
        self._usual = _is_usual(self.codes, state)

    def prepare(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def forward(self, prepared: Prepared, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + bias."""
        assert isinstance(prepared, Tensor)
        return F.linear(prepared, self._dequantized(prepared.dtype), bias)

    def backward(self, grad: Tensor) -> Tensor:
        """Return grad W."""
        return grad @ self._dequantized(grad.dtype)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return W [N, K] in `dtype`, in scratch memory that the next product of any weight may overwrite."""
        return self._dequantized(dtype)

    def dense(self) -> Tensor:
        """Return what the codes stand for, in the dtype that they were quantized from."""
        return self._dequantized(None).clone()

    def _dequantized(self, dtype: torch.dtype | None) -> Tensor:
        """W in scratch memory, in a dtype or the one that it was quantized from."""
        from bitsandbytes.functional import dequantize_4bit

        out, device = None, self.codes.device
        if self.codes.is_cuda:
            out = scratch((self.out_features, self.in_features), self.state.dtype, device)
        if out is not None and self._usual and device.index == torch.cuda.current_device() and _has_kernel(device):
            from wishbone.ops.frozen_linear.nf4_triton import dequantize_nf4

            dequantized = dequantize_nf4(self.codes, self.state, out)
        else:
            dequantized = dequantize_4bit(self.codes, self.state, out=out)
        return dequantized if dtype is None else dequantized.to(dtype)


def _is_usual(codes: Tensor, state: Any) -> bool:
    """Whether codes are NF4, two a byte, in blocks whose scales are float32 or 8 bits with scales of 256 of them."""
    if state.quant_type != "nf4" or codes.dtype != torch.uint8 or not codes.is_contiguous():
        return False
    if state.blocksize & (state.blocksize - 1) or state.blocksize > 4096:
        return False
    if not state.nested:
        return bool(state.absmax.dtype == torch.float32 and state.absmax.device == codes.device)
    scales = state.state2
    if state.absmax.dtype != torch.uint8 or scales.blocksize != 256 or scales.nested:
        return False
    return {t.device for t in (state.absmax, state.offset, scales.absmax, scales.code)} == {codes.device}


@lru_cache
def _has_kernel(device: torch.device) -> bool:
    """Whether our kernel turns made-up codes into what bitsandbytes turns them into, on this device."""
    if not find_spec("triton"):
        return False
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from wishbone.ops.frozen_linear.nf4_triton import dequantize_nf4

    same = True
    made_up = torch.arange(160 * 256, device=device).mul(0.37).sin().bfloat16().view(160, 256)
    for nested in (False, True):
        codes, state = quantize_4bit(made_up, quant_type="nf4", compress_statistics=nested)
        ours = dequantize_nf4(codes, state, torch.empty_like(made_up))
        same = same and torch.equal(ours, dequantize_4bit(codes, state))
    if not same:
        logger.warning(
            "NF4 weights are turned into 16 bits by bitsandbytes, whose codes our kernel reads in another way."
        )
    return same
