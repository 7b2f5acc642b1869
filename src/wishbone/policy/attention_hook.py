"""Shared-prefix attention inside any transformers model, through its registered attention interface.

transformers looks up the attention function of a layer by name on every call and hands it the keyword arguments that
`model(...)` was called with. Within `shared_prefix_attention(...)` that name is ours: a call with
`prefix_layout=layout` computes `prefix_attention` in every layer. No mask function is registered under the name, so no
mask is built. Outside the context the model is exactly as its owner configured it.

Some families hand no keyword arguments down to their attention, but all hand down a mask. For these the name is
another, under which a mask function is registered, too: within `mask_of_layout(layout)` it returns the layout itself,
which travels as a mask does, also into layers that are recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from wishbone.fused.lockstep import Lockstep, in_lockstep, tensors_of
from wishbone.ops.prefix_attention import PrefixLayout, prefix_attention, prefix_attention_in_lockstep

NAME, NAME_WITH_MASK = "wishbone_prefix", "wishbone_prefix_with_mask"


@dataclass(frozen=True)
class AttentionCall:
    """A call of the hook by one layer, recorded by `record_calls` to check that every layer called it."""

    window: int | None


class MaskNotPassedDown(TypeError):
    """A model's layers did not pass the keyword arguments of its forward pass on to their attention."""


@dataclass(frozen=True)
class LayoutMask:
    """The layout of a row, passed as a mask."""

    layout: PrefixLayout

    def to(self, *_: Any, **__: Any) -> LayoutMask:
        """Return itself: models convert their masks."""
        return self


_recorder: list[AttentionCall] | None = None
_mask: LayoutMask | None = None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | LayoutMask | None,
    *,
    prefix_layout: PrefixLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    slopes: Tensor | None = None,
    **_ignored: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks for it: heads-first inputs, tokens-first output [1, tokens, heads, head_dim].

    Raises:
        MaskNotPassedDown: the layers did not hand the layout on.
        NotImplementedError: for position biases, dropout or a mask beside the layout.
    """
    if isinstance(attention_mask, LayoutMask):
        prefix_layout, attention_mask = attention_mask.layout, None
    if prefix_layout is None:
        raise MaskNotPassedDown("the layers of this model do not hand prefix_layout down to their attention")
    refused = {"a position bias": position_bias, "an attention mask": attention_mask}
    named = [name for name, value in refused.items() if value is not None] + (["dropout"] if dropout else [])
    if named:
        remedy = "; set attention_dropout before the trainer is constructed" if dropout else ""
        raise NotImplementedError(f"shared-prefix attention does not support {', '.join(named)}{remedy}")
    if _recorder is not None:
        _recorder.append(AttentionCall(sliding_window))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    options: Any = {"scale": scale, "window": sliding_window, "softcap": softcap, "slopes": slopes}
    if isinstance(query, Lockstep):
        return _attend_both((query, key, value), prefix_layout, s_aux, options), None
    out = prefix_attention(query, key, value, prefix_layout, sinks=s_aux, **options)
    return out.transpose(1, 2).contiguous(), None


def _attend_both(states: Any, layout: PrefixLayout, sinks: Any, options: Any) -> Lockstep:
    """Return attention of policy and reference, tokens first, with what they differ by before they are rounded."""
    states_of = tensors_of(states, "policy"), tensors_of(states, "reference")
    out = prefix_attention_in_lockstep(*states_of, layout, sinks=(sinks, sinks), **options)
    policy, reference, difference = (None if one is None else one.transpose(1, 2).contiguous() for one in out)
    assert policy is not None and reference is not None
    return Lockstep(policy, reference, states[0].adapters, difference)


def prefix_attention_forward(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Attend as `_attend` does; with queries of policy and reference, once for each.

    Where their values carry a difference, that of the outputs is taken before they are rounded.
    """
    value = args[1] if len(args) > 1 else kwargs.get("value")
    if isinstance(query, Lockstep) and (not isinstance(value, Lockstep) or value.difference is None):
        both: tuple[Tensor, None] = in_lockstep(_attend, (module, query, *args), kwargs)
        return both
    return _attend(module, query, *args, **kwargs)


def _layout_for_layers(*_: Any, **__: Any) -> LayoutMask | None:
    """Return the mask of `mask_of_layout` where transformers builds a mask."""
    return _mask


AttentionInterface.register(NAME, prefix_attention_forward)
AttentionInterface.register(NAME_WITH_MASK, prefix_attention_forward)
AttentionMaskInterface.register(NAME_WITH_MASK, _layout_for_layers)


def attention_configs(model: PreTrainedModel) -> list[Any]:
    """Return the configurations by which the layers of `model` choose their attention; of any one, the same object."""
    return list({id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values())


@contextmanager
def shared_prefix_attention(configs: Sequence[Any], name: str = NAME, towers: Sequence[Any] = ()) -> Iterator[None]:
    """Let every layer of a model call `prefix_attention_forward` within the context, in recomputation too.

    Args:
        configs: the model's `attention_configs`.
        name: `NAME`, or `NAME_WITH_MASK` for models that take the layout as a mask.
        towers: those of them that belong to vision towers, whose attention stays as it is.
    """
    before = [(config, config._attn_implementation) for config in configs]
    kept = {id(config) for config in towers}
    try:
        for config in configs:
            config._attn_implementation = name
        for config, implementation in before:  # a model's configuration sets those of its parts
            if id(config) in kept:
                config._attn_implementation = implementation
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


@contextmanager
def mask_of_layout(layout: PrefixLayout) -> Iterator[None]:
    """Let models whose attention has the name `NAME_WITH_MASK` take the layout for their mask within the context."""
    global _mask
    before, _mask = _mask, LayoutMask(layout)
    try:
        yield
    finally:
        _mask = before


@contextmanager
def record_calls() -> Iterator[list[AttentionCall]]:
    """Collect every call of the hook within the context."""
    global _recorder
    calls: list[AttentionCall] = []
    _recorder = calls
    try:
        yield calls
    finally:
        _recorder = None


__all__ = [
    "NAME",
    "NAME_WITH_MASK",
    "AttentionCall",
    "LayoutMask",
    "attention_configs",
    "mask_of_layout",
    "record_calls",
    "shared_prefix_attention",
]
