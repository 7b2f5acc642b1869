"""A frozen weight in 4 bits, as bitsandbytes keeps it: dequantized into scratch memory before each product.

Dequantizing reads half a byte and the scales and writes 2 bytes for each element: 0.15 GB, 0.04 ms of an H200's memory
traffic for 14,336 x 4,096, where the product with 8,192 tokens takes 1.3 ms. Activations are not rounded, and forward
and backward use the same values, so this is an ordinary linear layer with the weights that the codes stand for.

On the current CUDA device one kernel does it in one pass (`nf4_triton.py`), if the codes are packed in the usual way
and a few test codes come out as bitsandbytes has them; otherwise bitsandbytes does it.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from wishbone.ops.compiled_ahead import launched
from wishbone.ops.frozen_linear.matrix import MatrixWeight
from wishbone.ops.frozen_linear.scratch import scratch

logger = logging.getLogger(__name__)


class NF4Weight(MatrixWeight):
    """W as 4-bit codes (NF4 or FP4) with their scales.

    Args:
        weight: bitsandbytes' `Params4bit`, quantized; or its codes.
        quant_state: of the codes.
    """

    def __init__(self, weight: Tensor, quant_state: Any) -> None:
        super().__init__(*quant_state.shape)
        self.codes, self.state = weight.detach().view(-1, 1), quant_state
        self._usual = _is_usual(self.codes, quant_state)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return W [N, K] in `dtype`, on CUDA in scratch memory."""
        return self._dequantized().to(dtype)

    def dense(self) -> Tensor:
        """Return what the codes stand for, in the dtype that they were quantized from."""
        return self._dequantized().clone()

    def _dequantized(self) -> Tensor:
        """Return W in the dtype that it was quantized from, on CUDA in scratch memory."""
        from bitsandbytes.functional import dequantize_4bit

        out, device = None, self.codes.device
        if self.codes.is_cuda:
            out = scratch((self.out_features, self.in_features), self.state.dtype, device)
        if out is not None and self._usual and device.index == torch.cuda.current_device() and _has_kernel(device):
            from wishbone.ops.frozen_linear.nf4_triton import dequantize_nf4

            return dequantize_nf4(self.codes, self.state, out)
        dequantized: Tensor = dequantize_4bit(self.codes, self.state, out=out)
        return dequantized


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
    """Whether the kernel turns a few test codes into what bitsandbytes turns them into, on this device."""
    if not find_spec("triton"):
        return False
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from wishbone.ops.frozen_linear.nf4_triton import dequantize_nf4

    same = True
    weight = torch.arange(160 * 256, device=device).mul(0.37).sin().bfloat16().view(160, 256)
    for nested in (False, True):
        codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
        with launched():
            ours = dequantize_nf4(codes, state, torch.empty_like(weight))
        same = same and torch.equal(ours, dequantize_4bit(codes, state))
    if not same:
        logger.warning(
            "NF4 weights are dequantized by bitsandbytes, which is slower: this version stores codes in a way that "
            "Wishbone's kernel does not read."
        )
    return same
