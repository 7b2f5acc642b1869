"""Attention with slopes by distance (ALiBi) of families that call no registered attention function: Bloom and MPT.

Press et al. 2022, "Train Short, Test Long" (arXiv:2108.12409). These modules add a table of slopes times positions of
tokens in the row to their scores. In a row with shared prefixes distances follow from the layout, so while a pass runs
their forward is one that takes the slopes out of the table and calls shared-prefix attention. Which modules these are
is read off the names of their parts; the trial of `capability.py` compares the whole model with its own results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from wishbone.fused.instance_attributes import InstanceAttributes, slot_of
from wishbone.policy.attention_hook import LayoutMask, prefix_attention_forward

BLOOM = {"query_key_value", "dense", "inv_norm_factor", "pretraining_tp", "slow_but_exact", "_reshape"}
MPT = {"Wqkv", "out_proj", "softmax_scale", "clip_qkv", "n_heads", "head_dim"}


def alibi_attention(model: nn.Module) -> InstanceAttributes:
    """Return what the forward of such modules of a model is within `replaced()`; nothing of the model is changed."""
    found = InstanceAttributes()
    for module in model.modules():
        forward = _bloom if all(hasattr(module, name) for name in BLOOM) else None
        forward = _mpt if all(hasattr(module, name) for name in MPT) else forward
        slot = slot_of(module) if forward is not None else None
        if forward is not None and slot is not None:
            found.add(module, slot, forward(module, getattr(module, slot)))
    return found


def _bloom(module: Any, own_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, residual: Tensor, alibi: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        sliced = module.pretraining_tp > 1 and module.slow_but_exact
        if not isinstance(attention_mask, LayoutMask) or sliced:
            return own_forward(hidden_states, residual, alibi, attention_mask, **kwargs)
        query, key, value = module._reshape(module.query_key_value(hidden_states))
        slopes = alibi[:, 0, -1] - alibi[:, 0, -2]  # a table [heads, 1, tokens] over the row
        out, _ = prefix_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=module.inv_norm_factor,
            dropout=module.hidden_dropout if module.training else 0.0,
            slopes=slopes,
        )
        return residual + module.dense(out.flatten(2)), None

    return forward


def _mpt(module: Any, own_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, position_bias: Tensor, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, LayoutMask):
            return own_forward(hidden_states, position_bias, **kwargs)
        together = module.Wqkv(hidden_states)
        if module.clip_qkv:
            together = together.clamp(min=-module.clip_qkv, max=module.clip_qkv)
        heads = (
            part.unflatten(2, (module.n_heads, module.head_dim)).transpose(1, 2) for part in together.chunk(3, dim=2)
        )
        slopes = position_bias[:, 0, -1] - position_bias[:, 0, -2]  # a table [heads, 1, longest sequence]
        dropout = module.attn_dropout_p if module.training else 0.0
        scaling = module.softmax_scale
        out, _ = prefix_attention_forward(module, *heads, mask, scaling=scaling, dropout=dropout, slopes=slopes)
        return module.out_proj(out.flatten(2)), None

    return forward
