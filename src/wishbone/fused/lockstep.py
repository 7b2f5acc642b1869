"""Policy and reference in one pass: tensors of both go through a model's code together.

With the adapter off, the policy is its own reference. A `Lockstep` stands for a tensor of the model, once as the policy
has it and once as the reference has it. A function of PyTorch that is called with one runs on both halves, the
reference's without gradient, so a model's own code computes both and keeps nothing of the reference for the backward
pass. Fused layers take both halves at once: they read frozen weights for both, and in 8 bits they round what the halves
differ by instead of rounding each (`ops/lora_linear/lockstep.py`).

What has adapters but no fused form, and what chooses its work by the values of tensors (experts), runs once for each
half as a whole (`apart`). A layer that is recomputed in the backward pass runs there for the policy alone
(`checkpointed_in_lockstep`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wishbone.fused.lora_layer import ACTIVE, OFF

Half = Literal["policy", "reference"]


class Lockstep(Tensor):
    """One tensor of a model in both halves.

    Its shape, dtype and device are those of both. It has no memory of its own.

    Args:
        policy: the policy's, perhaps with a graph.
        reference: the reference's, without.
        adapters: names of the frozen adapters that are on in the reference; none means the base model.
    """

    policy: Tensor
    reference: Tensor
    adapters: tuple[str, ...]

    @staticmethod
    def __new__(cls, policy: Tensor, reference: Tensor, adapters: tuple[str, ...]) -> Lockstep:  # noqa: D102
        made: Lockstep = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, policy.shape, strides=policy.stride(), dtype=policy.dtype, device=policy.device
        )
        return made

    def __init__(self, policy: Tensor, reference: Tensor, adapters: tuple[str, ...]) -> None:
        self.policy, self.reference, self.adapters = policy, reference, adapters

    def __repr__(self) -> str:  # type: ignore[override]
        """Return both halves."""
        return f"Lockstep(policy={self.policy}, reference={self.reference}, adapters={self.adapters})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function on both halves; what is asked about the tensor itself is answered by the policy's."""
        if getattr(function, "__name__", None) == "__get__":
            value = function(args[0].policy)
            if not isinstance(value, Tensor):
                return value
        return in_lockstep(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse what reaches PyTorch's dispatcher, past `__torch_function__`."""
        raise NotImplementedError(f"{function} does not run on policy and reference together")


def in_lockstep(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what a function returns for the policy's and for the reference's half of its arguments.

    Raises:
        NotImplementedError: it returns something other than tensors, and not the same for both.
    """
    policy_args, reference_args, adapters = _split(args)
    policy_kwargs = reference_kwargs = kwargs
    if kwargs:
        adapters = adapters_of_reference(kwargs) if adapters is None else adapters
        policy_kwargs, reference_kwargs = half_of(kwargs, "policy"), half_of(kwargs, "reference")
    policy = function(*policy_args, **policy_kwargs)
    with torch.no_grad():
        reference = function(*reference_args, **reference_kwargs)
    return together(policy, reference, adapters or ())


def apart(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that runs `forward` once for each half, with the reference's adapters for the reference's.

    Args:
        module: whose forward it is. The adapters in it are switched for the reference.
        forward: computes one half, and calls without a `Lockstep`.
    """
    layers = [vars(one) for one in module.modules() if OFF in vars(one)]

    def both(*args: Any, **kwargs: Any) -> Any:
        adapters = adapters_of_reference((args, kwargs))
        if adapters is None:
            return forward(*args, **kwargs)
        policy = forward(*half_of(args, "policy"), **half_of(kwargs, "policy"))
        with torch.no_grad(), only_adapters(layers, adapters):
            reference = forward(*half_of(args, "reference"), **half_of(kwargs, "reference"))
        return together(policy, reference, adapters)

    return both


def checkpointed_in_lockstep(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return an activation checkpoint of layers that may be called with both halves.

    The forward pass runs both. The backward pass recomputes the policy's half alone: its gradient needs nothing of the
    reference. In 8 bits the recomputed input is then rounded itself, where the forward pass rounded the difference.

    Args:
        checkpoint: runs `function(*args)` and again in the backward pass, as `torch.utils.checkpoint` does.
    """

    def run(function: Callable[..., Any], *args: Any) -> Any:
        bound = function if isinstance(function, partial) else partial(function)
        adapters = adapters_of_reference((args, bound.keywords))
        if adapters is None:
            return checkpoint(function, *args)
        references = [half_of(args, "reference"), half_of(bound.keywords, "reference")]
        keywords = half_of(bound.keywords, "policy")
        found: list[Any] = []

        def layer(*policy: Any) -> Any:
            if not references:
                return bound.func(*bound.args, *policy, **keywords)
            own = together(list(policy), list(references[0]), adapters), together(keywords, references[1], adapters)
            references.clear()
            out = bound.func(*bound.args, *own[0], **own[1])
            found.append(half_of(out, "reference"))
            return half_of(out, "policy")

        policy = checkpoint(layer, *half_of(args, "policy"))
        return together(policy, found.pop(), adapters)

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


def half_of(value: Any, half: Half) -> Any:
    """Return a value, or a list, tuple or dictionary of values, with one half in the place of each `Lockstep`."""
    if isinstance(value, Lockstep):
        return getattr(value, half)
    if isinstance(value, dict):
        return {key: half_of(one, half) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(half_of(one, half) for one in value)
    return value


def together(policy: Any, reference: Any, adapters: tuple[str, ...]) -> Any:
    """Return results of both halves as one: tensors as `Lockstep`, also within lists, tuples and dictionaries.

    Raises:
        NotImplementedError: something other than tensors differs.
    """
    if policy is reference:
        return policy
    if isinstance(policy, Tensor) and isinstance(reference, Tensor) and policy.shape == reference.shape:
        return Lockstep(policy, reference, adapters)
    if type(policy) is type(reference) and len(_items(policy)) == len(_items(reference)) > 0:
        if isinstance(policy, dict):
            return {key: together(one, reference[key], adapters) for key, one in policy.items()}
        parts = [together(one, other, adapters) for one, other in zip(policy, reference, strict=True)]
        return type(policy)(parts)
    if not isinstance(policy, Tensor) and not isinstance(reference, Tensor) and bool(policy == reference):
        return policy
    raise NotImplementedError("the model's code looks at values, which differ between policy and reference")


def adapters_of_reference(value: Any) -> tuple[str, ...] | None:
    """Return the `adapters` of the first `Lockstep` among a value and what it holds; None if there is none."""
    if isinstance(value, Lockstep):
        return value.adapters
    for one in value.values() if isinstance(value, dict) else value if type(value) in (list, tuple) else ():
        if (found := adapters_of_reference(one)) is not None:
            return found
    return None


def _split(args: Sequence[Any]) -> tuple[list[Any], list[Any], tuple[str, ...] | None]:
    """Return `half_of` arguments for both halves, and `adapters_of_reference`: it runs at each call, so in one walk."""
    policy, reference, adapters = [], [], None
    for one in args:
        if isinstance(one, Lockstep):
            policy.append(one.policy)
            reference.append(one.reference)
            adapters = one.adapters if adapters is None else adapters
        elif type(one) in (list, tuple, dict):
            policy.append(half_of(one, "policy"))
            reference.append(half_of(one, "reference"))
            adapters = adapters_of_reference(one) if adapters is None else adapters
        else:
            policy.append(one)
            reference.append(one)
    return policy, reference, adapters


def _items(value: Any) -> Any:
    return value if isinstance(value, (list, tuple, dict)) else ()
