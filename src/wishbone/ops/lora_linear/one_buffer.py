"""Weights of layers that share an input, laid one under the other in one buffer: one matrix product serves them all.

A stack [N_1 + ... + N_m, K] of row-major matrices is itself a row-major matrix, so views of its rows are ordinary
contiguous weights, and the stack takes no more memory than they do. Their addresses tell at each use whether weights
lie like that: weights that were moved or replaced since are simply separate again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wishbone.ops.frozen_linear import DenseWeight, EightBitWeight, FrozenWeight


@torch.no_grad()
def fuse_group(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Lay frozen parameters [N_i, K] into one buffer and make their data views of its rows; return whether it was done.

    Nothing is done, and False returned, where it would not be safe: a parameter is trained, is not a plain contiguous
    matrix in memory of its own, or the parameters differ in dtype, device or K. Values, names and shapes stay. The old
    memory of a parameter is freed as it moves.
    """
    first = parameters[0]
    for parameter in parameters:
        storage = parameter.untyped_storage()
        if (
            type(parameter.data) is not Tensor
            or parameter.requires_grad
            or parameter.ndim != 2
            or not parameter.is_contiguous()
            or parameter.is_meta
            or storage.nbytes() != parameter.nbytes
            or (parameter.dtype, parameter.device, parameter.shape[1]) != (first.dtype, first.device, first.shape[1])
        ):
            return False
    if len({parameter.data_ptr() for parameter in parameters}) < len(parameters):
        return False
    buffer = first.new_empty(sum(p.shape[0] for p in parameters), first.shape[1])
    for parameter, rows in zip(parameters, buffer.split([p.shape[0] for p in parameters]), strict=True):
        rows.copy_(parameter)
        parameter.data = rows
    return True


def joined_matrix(matrices: Sequence[Tensor]) -> Tensor | None:
    """Return the stack [sum of N_i, K] of matrices that lie one under the other in one buffer, otherwise None."""
    first = matrices[0]
    storage, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for matrix in matrices:
        if (
            matrix.untyped_storage().data_ptr() != storage
            or matrix.storage_offset() != offset
            or matrix.shape[1] != first.shape[1]
            or matrix.dtype != first.dtype
            or not matrix.is_contiguous()
        ):
            return None
        offset += matrix.numel()
    rows = sum(matrix.shape[0] for matrix in matrices)
    return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1), first.storage_offset())


def joined_weight(weights: Sequence[FrozenWeight], dtype: torch.dtype) -> DenseWeight | EightBitWeight | None:
    """Return weights of one form that lie in one buffer as one weight, otherwise None.

    Args:
        weights: W_i [N_i, K].
        dtype: of the arithmetic; plain matrices of another dtype would have to be cast first and are not joined.
    """
    plain = [weight.weight for weight in weights if isinstance(weight, DenseWeight) and weight.weight.dtype == dtype]
    if len(plain) == len(weights):
        matrix = joined_matrix(plain)
        return None if matrix is None else DenseWeight(matrix)
    coded = [weight for weight in weights if isinstance(weight, EightBitWeight)]
    if len(coded) < len(weights) or len({type(weight) for weight in coded}) > 1:
        return None
    codes = joined_matrix([weight.qweight for weight in coded])
    scales = joined_matrix([weight.scale.view(-1, 1) for weight in coded])
    return None if codes is None or scales is None else type(coded[0])(codes, scales)
