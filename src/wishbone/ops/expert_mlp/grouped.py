"""Products of rows that are sorted by expert: each row with the matrix of its expert, in one call for all experts.

In bfloat16 on CUDA GPUs from Ampere on these are PyTorch's `grouped_mm` and kernels of ours; elsewhere one product for
each expert.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.expert_mlp.gate import Gate, GatedProduct
from wishbone.ops.expert_mlp.routing import Routing
from wishbone.ops.frozen_linear import DenseWeight
from wishbone.ops.lora_linear.precision import precise_product, product_and_terms


def product(
    x: Tensor,
    matrices: Tensor,
    routing: Routing,
    bias: Tensor | None = None,
    low: Tensor | None = None,
    factors: Tensor | None = None,
) -> Tensor:
    """Return x_s M^e + b^e + l_s F^e for each row s, [S, N].

    Args:
        x: [S, K].
        matrices: M [experts, K, N]; rows or columns lie side by side.
        routing: of the rows.
        bias: b [experts, N], or None.
        low: l [S, r], or None.
        factors: F [experts, r, N]; read with `low`.
    """
    if in_one_call(x):
        from wishbone.ops.expert_mlp.triton import add_by_expert_

        y = F.grouped_mm(x, matrices, offs=routing.ends)
        if bias is None and (low is None or factors is None):
            return y
        return add_by_expert_(y, bias, low, factors, routing)
    y = x.new_empty(x.shape[0], matrices.shape[2])
    for expert, rows in enumerate(routing.slices()):
        terms = [] if low is None or factors is None else [(slice(0, y.shape[1]), low[rows], factors[expert])]
        own_bias = None if bias is None else bias[expert]
        y[rows] = product_and_terms(DenseWeight(matrices[expert].t()), x[rows], own_bias, terms)
    return y


def outer(left: Tensor, right: Tensor, routing: Routing) -> Tensor:
    """Return the sum over each expert's rows of left_s right_s^T, [experts, N, K], float32 or better.

    Args:
        left: [S, N].
        right: [S, K].
        routing: of the rows.
    """
    if in_one_call(left):
        from wishbone.ops.expert_mlp.triton import outer_by_expert

        return outer_by_expert(left, right, routing)
    return torch.stack([precise_product(left[rows].t(), right[rows]) for rows in routing.slices()])


def gathered(rows: Tensor, routing: Routing, share: Tensor | None = None) -> Tensor:
    """Return the sum over the choices of each token of share times its row, [T, K], summed in float32 or better.

    Args:
        rows: [S, K].
        routing: of the rows.
        share: [T, k], or None for ones.
    """
    if in_one_call(rows):
        from wishbone.ops.expert_mlp.triton import gathered_by_token

        return gathered_by_token(rows, routing, share)
    precise = torch.promote_types(rows.dtype, torch.float32)
    parts = rows[routing.row].to(precise)
    return (parts if share is None else parts * share[..., None].to(precise)).sum(1).to(rows.dtype)


def weighted_backward_(
    gate: Gate, unweighted: Tensor, u: Tensor, share: Tensor, routing: Routing, *, keep: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return h [S, I] and du [S, U], in the memory of the arguments, and the gradient of each row's share, [S].

    Args:
        gate: between the two matrices.
        unweighted: W^T do [S, I], the gradient of h before it is multiplied with the share.
        u: [S, U].
        share: [T, k].
        routing: of the rows.
        keep: whether h is wanted.
    """
    if in_one_call(u) and isinstance(gate, GatedProduct):
        from wishbone.ops.expert_mlp.triton import weighted_gate_backward_

        dots = weighted_gate_backward_(unweighted, u, share, routing, silu=gate.activation == "silu", keep=keep)
        return unweighted if keep else None, u, dots
    p = share.reshape(-1).index_select(0, routing.choice).to(u.dtype)[:, None]
    h, gradient = gate.backward_(unweighted * p, u)
    if in_one_call(u):
        from wishbone.ops.expert_mlp.triton import dots_of_rows

        return h, gradient, dots_of_rows(unweighted, h)
    precise = torch.promote_types(u.dtype, torch.float32)
    return h, gradient, (unweighted.to(precise) * h.to(precise)).sum(1)


def in_one_call(x: Tensor) -> bool:
    """Return whether products of all experts are one call for rows like x."""
    return x.is_cuda and x.dtype == torch.bfloat16 and _has_grouped_products(x.device)


@lru_cache
def _has_grouped_products(device: torch.device) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)
