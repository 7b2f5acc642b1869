"""Rotary position embedding of queries and keys: one op, its reference, one Triton kernel for both and for backward."""

from __future__ import annotations

from torch import Tensor

from wishbone.ops.backend import Backend, runs_triton
from wishbone.ops.rotary.pairs import Form, turned_elements
from wishbone.ops.rotary.reference import rotary_reference

__all__ = ["Form", "rotary", "turned_elements"]


def rotary(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, form: Form = "halves", backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Return query and key turned by the angles of their positions.

    Args:
        query: [batch, heads, tokens, head_dim], any strides.
        key: [batch, key_value_heads, tokens, head_dim], any strides; key_value_heads may be 0.
        cos, sin: [1 or batch, tokens, turned], turned <= head_dim even, or [1 or batch, tokens, turned / 2] with one
            angle a pair. Elements of a head from `turned` on stay as they are.
        form: which elements of a head are turned together (`pairs.py`).
        backend: "triton" or "reference" by name, or "auto": triton on CUDA, reference elsewhere.

    Returns:
        New tensors, laid out in memory as [batch, tokens, heads, head_dim]. Differentiable in query and key.

    Raises:
        ValueError: the backend is unknown.
    """
    if runs_triton(backend, auto=query.is_cuda):
        from wishbone.ops.rotary.triton import rotary_triton

        return rotary_triton(query, key, cos, sin, form=form)
    return rotary_reference(query, key, cos, sin, form=form)
