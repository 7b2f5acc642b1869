"""Attention over packed rows in which sequences share a prefix: one op, its definition and two fast backends."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import Document, PrefixLayout
from wishbone.ops.prefix_attention.reference import prefix_attention_reference
from wishbone.ops.prefix_attention.sdpa import prefix_attention_sdpa

if TYPE_CHECKING:
    from wishbone.ops.prefix_attention.triton import Unrounded

Backend = Literal["auto", "reference", "sdpa", "triton"]

LARGEST_HEAD = 256
"""Largest head dimension that the Triton kernels take."""

LARGEST_HEAD_BYTES_ON_TURING = 512
"""Most bytes of one head of one token on GPUs of compute capability 7.5 (T4), which have less shared memory."""

KERNEL_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})

__all__ = ["Backend", "Document", "PrefixLayout", "prefix_attention", "prefix_attention_in_lockstep"]


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    backend: Backend = "auto",
    unrounded: Unrounded | None = None,
) -> Tensor:
    """Return attention over one packed row in which every token sees its stem and the past of its own branch.

    With autocast on, it is computed in autocast's dtype, as PyTorch's scaled-dot-product attention is.

    Args:
        query: [1, heads, tokens, head_dim].
        key: [1, key_value_heads, tokens, head_dim].
        value: [1, key_value_heads, tokens, value_dim].
        layout: where the documents lie; `layout.length` equals `tokens`.
        scale: positive factor on the scores.
        window: a token sees only keys less than this many positions back, or None.
        softcap: bound of the tanh soft-capping of the scores, or None.
        sinks: [heads], one more score of each softmax that has no value, or None; may be trained.
        slopes: [heads], factors on the distance between key and query, which is added to the scores (ALiBi), or None;
            without gradient.
        backend: "reference", "sdpa" or "triton" by name, or "auto": triton on CUDA where it is installed and takes the
            head dimension and the dtype, sdpa everywhere else, and where tokens of a stem see each other.
        unrounded: of `prefix_attention_in_lockstep`; for the backend "triton".

    Returns:
        [1, heads, tokens, value_dim], dtype of `value` or autocast's.

    Raises:
        ValueError: if the row and its layout differ in length, or the backend is unknown.
        NotImplementedError: if tokens of a stem see each other and the backend is "triton".
    """
    if query.shape[0] != 1 or query.shape[2] != layout.length:
        raise ValueError(f"query of shape {tuple(query.shape)} is not one row of {layout.length} tokens")
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    if backend == "auto":
        backend = "triton" if _kernels_take(query) and not layout.together else "sdpa"
    if slopes is not None:
        slopes = slopes.detach()
    options: Any = {"scale": scale, "window": window, "softcap": softcap, "sinks": sinks, "slopes": slopes}
    if backend == "sdpa":
        return prefix_attention_sdpa(query, key, value, layout, **options)
    if backend == "triton":
        from wishbone.ops.prefix_attention.triton import prefix_attention_triton

        if layout.together:
            raise NotImplementedError("the Triton kernels know no tokens of a stem that see each other")
        return prefix_attention_triton(query, key, value, layout, unrounded=unrounded, **options)
    if backend == "reference":
        return prefix_attention_reference(query, key, value, layout, **options)
    raise ValueError(f"backend {backend!r} is not one of auto, reference, sdpa, triton")


def prefix_attention_in_lockstep(
    policy: tuple[Tensor, Tensor, Tensor],
    reference: tuple[Tensor, Tensor, Tensor],
    layout: PrefixLayout,
    *,
    sinks: tuple[Tensor | None, Tensor | None] = (None, None),
    backend: Backend = "auto",
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return attention of the policy and of the reference, and what they differ by before they are rounded.

    Args:
        policy, reference: query, key and value of each.
        layout: as in `prefix_attention`, likewise the options.
        sinks: of the policy and of the reference.
        backend: as in `prefix_attention`.

    Returns:
        [1, heads, tokens, value_dim] each; no difference where the backend does not keep what it rounds: everywhere but
        in the Triton kernels for 16 bits and usual head dimensions.
    """
    query, _, value = policy
    dtype = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else query.dtype
    keeps = backend == "triton" or (backend == "auto" and _kernels_take(query) and not layout.together)
    options |= {"backend": backend}
    if not keeps or dtype not in (torch.bfloat16, torch.float16) or query.shape[-1] != value.shape[-1]:
        own = prefix_attention(*policy, layout, sinks=sinks[0], **options)
        with torch.no_grad():
            return own, prefix_attention(*reference, layout, sinks=sinks[1], **options), None
    from wishbone.ops.prefix_attention.triton import Unrounded

    unrounded = Unrounded()
    with torch.no_grad():
        of_reference = prefix_attention(*reference, layout, sinks=sinks[1], unrounded=unrounded, **options)
    own = prefix_attention(*policy, layout, sinks=sinks[0], unrounded=unrounded, **options)
    return own, of_reference, None if unrounded.difference is None else unrounded.difference[..., : value.shape[-1]]


def _kernels_take(query: Tensor) -> bool:
    """Whether the Triton kernels run on the device of `query` and take its head dimension and dtype."""
    head_dim = query.shape[-1]
    if not query.is_cuda or query.dtype not in KERNEL_DTYPES or head_dim > LARGEST_HEAD:
        return False
    large = head_dim * query.element_size() > LARGEST_HEAD_BYTES_ON_TURING
    if large and torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    return find_spec("triton") is not None
