"""Calls with policy and reference that run once for each: of what has no fused form, and of recomputed layers.

What has adapters but no fused form, and what chooses its work by the values of tensors (experts), runs once for each
of the two (`apart`). A layer that is recomputed in the backward pass runs there for the policy alone
(`checkpointed_in_lockstep`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wishbone.fused.lockstep import adapters_of_reference, rejoined, tensors_of, together
from wishbone.fused.lora_layer import ACTIVE, OFF


def apart(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that runs `forward` for the policy, then for the reference with the reference's adapters.

    Args:
        module: whose forward it is. The adapters in it are switched for the reference.
        forward: computes one of the two, and calls without a `Lockstep`.
    """
    layers = [vars(one) for one in module.modules() if OFF in vars(one)]

    def both(*args: Any, **kwargs: Any) -> Any:
        adapters = adapters_of_reference((args, kwargs))
        if adapters is None:
            return forward(*args, **kwargs)
        policy = forward(*tensors_of(args, "policy"), **tensors_of(kwargs, "policy"))
        with torch.no_grad(), only_adapters(layers, adapters):
            reference = forward(*tensors_of(args, "reference"), **tensors_of(kwargs, "reference"))
        return together(policy, reference, adapters)

    return both


def checkpointed_in_lockstep(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return an activation checkpoint of layers that may be called with policy and reference.

    The forward pass runs both. The backward pass recomputes the policy alone: its gradient needs nothing of the
    reference. In 8 bits the recomputed input is then rounded itself, where the forward pass rounded the difference.

    Args:
        checkpoint: runs `function(*args)` and again in the backward pass, as `torch.utils.checkpoint` does.
    """

    def run(function: Callable[..., Any], *args: Any) -> Any:
        bound = function if isinstance(function, partial) else partial(function)
        adapters = adapters_of_reference((args, bound.keywords))
        if adapters is None:
            return checkpoint(function, *args)
        given = [(args, bound.keywords)]
        keywords = tensors_of(bound.keywords, "policy")
        found: list[Any] = []

        def layer(*policy: Any) -> Any:
            if not given:
                return bound.func(*bound.args, *policy, **keywords)
            positional, named = given.pop()
            mine = policy, keywords
            if not torch.is_grad_enabled():  # a reentrant checkpoint, which makes the graph itself
                mine = _detached(mine)
            out = bound.func(*bound.args, *rejoined(mine[0], positional), **rejoined(mine[1], named))
            found.append(out)
            return tensors_of(out, "policy")

        policy = checkpoint(layer, *tensors_of(args, "policy"))
        return rejoined(policy, found.pop())

    return run


@contextmanager
def only_adapters(layers: Sequence[dict[str, Any]], adapters: Sequence[str]) -> Iterator[None]:
    """Context in which only these adapters are on in some of PEFT's layers, given by their attributes."""
    before = [(own[OFF], own[ACTIVE]) for own in layers]
    for own in layers:
        own[OFF], own[ACTIVE] = not adapters, list(adapters) if adapters else own[ACTIVE]
    try:
        yield
    finally:
        for own, (off, active) in zip(layers, before, strict=True):
            own[OFF], own[ACTIVE] = off, active


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(one) for key, one in value.items()}
    return type(value)(_detached(one) for one in value) if type(value) in (list, tuple) else value
