"""Scans of recurrent layers by Triton kernels, for packed rows in which sequences share a prefix.

The gated delta rule, Mamba-2 and lightning attention all keep a matrix S [key_dim, value_dim] a head that decays by one
scalar a token, and write rank one:

    S <- exp(g) S;    S <- S + k u^T;    o = scale S^T q + skip v

with u = beta (v - S^T k) in the delta rule, and u = dt v elsewhere. `gated_delta_rule` and `state_space_scan` define
them. The row is cut into chunks of 64 tokens; what lies within a chunk is computed for all chunks at once, and only S
goes from chunk to chunk, through all stems first, then through all branches. Only the inputs are kept for the backward
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wishbone.ops.kernel_trial import kernel_is_right
from wishbone.ops.prefix_attention.layout import Document, PrefixLayout

CHUNK = 64
"""Tokens of a chunk."""
MOST_KEY_DIM = 128
"""Elements of a key that a program holds at a time."""


TRIED_ROW = PrefixLayout((Document(0, 70, (90, 160)), Document(160, 230)))
"""The row that kernels are tried with: a stem of two chunks, branches of one and of two, a sequence of its own."""


def has_kernels(query: Tensor, value: Tensor) -> bool:
    """Return whether the kernels take a scan's tensors: on a CUDA device, keys not too long, not float64."""
    return (
        query.is_cuda
        and query.shape[-1] <= MOST_KEY_DIM
        and value.dtype
        in (
            torch.float32,
            torch.bfloat16,
            torch.float16,
        )
    )


def kernels_are_right(
    name: str,
    inputs: Sequence[Tensor],
    sizes: Sequence[float],
    kernel: Callable[[Sequence[Tensor], PrefixLayout], Tensor],
    reference: Callable[[Sequence[Tensor], PrefixLayout], Tensor],
) -> bool:
    """Return whether a scan by kernels gives what PyTorch gives, tried once for each kind of call.

    Args:
        name: of the scan, for the line that says that it is not right.
        inputs: of a call: tensors [1, tokens, ...] and tensors [heads].
        sizes: of each input in the trial: 0 for vectors of about unit length, else the mean of values of that sign.
        kernel, reference: both forms.
    """
    kind = tuple((x.shape[x.ndim > 1 and 2 :], x.dtype, x.device) for x in inputs)

    def made_up() -> list[Tensor]:
        generator = torch.Generator(inputs[0].device).manual_seed(0)
        found = []
        for x, size in zip(inputs, sizes, strict=True):
            shape = x.shape if x.ndim == 1 else (1, TRIED_ROW.length, *x.shape[2:])
            noise = torch.randn(shape, device=x.device, generator=generator)
            found.append((noise.abs() * size if size else noise * x.shape[-1] ** -0.5).to(x.dtype))
        return found

    return kernel_is_right(name, kind, lambda x: kernel(x, TRIED_ROW), lambda x: reference(x, TRIED_ROW), made_up)
