"""Policy and reference in one pass: tensors of both go through a model's code together.

With the adapter off, the policy is its own reference. A `Lockstep` stands for a tensor of the model, once as the policy
has it and once as the reference has it. A function of PyTorch that is called with one runs on both, the
reference's without gradient, so a model's own code computes both and keeps nothing of the reference for the backward
pass. Fused layers take both at once: they read frozen weights once for both, and in 8 bits they round what the two
differ by instead of rounding each (`ops/lora_linear/lockstep.py`).

Tensors in 16 bits are each rounded at every step. So what the policy differs by can travel in a third tensor, the
`difference` (`ops/carried_difference`): fused layers and sums take and leave it, and functions that move elements or
scale them carry it along. Whatever else is computed of a `Lockstep` has none, and the next sum starts from
policy - reference.

What cannot take both at once, and recomputed layers, are in `lockstep_calls.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from wishbone.ops.carried_difference import PolicyAndReference
from wishbone.ops.carried_difference.autograd import difference_of, sum_with_graph

Role = Literal["policy", "reference"]


class Lockstep(Tensor):
    """One tensor of a model, as the policy and as the reference has it.

    Its shape, dtype and device are those of both. It has no memory of its own.

    Args:
        policy: the policy's, perhaps with a graph.
        reference: the reference's, without.
        adapters: names of the frozen adapters that are on in the reference; none means the base model.
        difference: what the policy's differs by, of the same shape and dtype, without a graph; None if it is not
            carried. It is forgotten when either of the two is changed in place.
    """

    policy: Tensor
    reference: Tensor
    adapters: tuple[str, ...]

    @staticmethod
    def __new__(  # noqa: D102
        cls, policy: Tensor, reference: Tensor, adapters: tuple[str, ...], difference: Tensor | None = None
    ) -> Lockstep:
        made: Lockstep = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, policy.shape, strides=policy.stride(), dtype=policy.dtype, device=policy.device
        )
        return made

    def __init__(
        self, policy: Tensor, reference: Tensor, adapters: tuple[str, ...], difference: Tensor | None = None
    ) -> None:
        self.policy, self.reference, self.adapters = policy, reference, adapters
        self._carried = None if difference is None else (difference, _versions(policy, reference))

    @property
    def difference(self) -> Tensor | None:
        """What the policy's differs by, if it is carried."""
        if self._carried is None:
            return None
        difference, versions = self._carried
        return difference if versions == _versions(self.policy, self.reference) else None

    def with_difference(self) -> PolicyAndReference:
        """Return both tensors and what they differ by, which is rounded where it is not carried."""
        carried = self.difference
        difference = difference_of(self.policy, self.reference) if carried is None else carried
        return PolicyAndReference(self.policy, self.reference, difference)

    def __repr__(self) -> str:  # type: ignore[override]
        """Return both tensors."""
        return f"Lockstep(policy={self.policy}, reference={self.reference}, adapters={self.adapters})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function on both tensors; attributes that are not tensors are the policy's."""
        if getattr(function, "__name__", None) == "__get__":
            value = function(args[0].policy)
            if not isinstance(value, Tensor):
                return value
        elif (total := _sum(function, args, kwargs)) is not None:
            return total
        return in_lockstep(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse what reaches PyTorch's dispatcher, past `__torch_function__`."""
        raise NotImplementedError(f"{function} does not run on policy and reference together")


class PendingSum(Lockstep):
    """A sum of two that is computed where it is read first: a norm that comes next computes it on its way.

    Args:
        one, other: tensors of one shape and dtype, without a carried difference.

    Attributes:
        terms: the policy's two addends and the reference's two; None once the sum is there.
    """

    terms: tuple[Tensor, ...] | None

    @staticmethod
    def __new__(cls, one: Lockstep, other: Lockstep) -> PendingSum:  # noqa: D102
        return Lockstep.__new__(cls, one.policy, one.reference, one.adapters)  # type: ignore[return-value]

    def __init__(self, one: Lockstep, other: Lockstep) -> None:
        self.terms = (one.policy, other.policy, one.reference, other.reference)
        self.adapters, self._carried = one.adapters, None
        self._versions, self._with_graph = _versions(*self.terms), torch.is_grad_enabled()

    @property
    def policy(self) -> Tensor:  # type: ignore[override]
        """The policy's sum."""
        return self._sums()[0]

    @property
    def reference(self) -> Tensor:  # type: ignore[override]
        """The reference's sum."""
        return self._sums()[1]

    def addends(self) -> tuple[Tensor, ...] | None:
        """Return `terms` for whoever computes the sum now; None where it is there or would have another graph.

        Raises:
            RuntimeError: an addend was changed in place since, so that the sum cannot be computed any more.
        """
        if self.terms is None or torch.is_grad_enabled() != self._with_graph:
            return None
        if _versions(*self.terms) != self._versions:
            raise RuntimeError("a tensor was changed in place after it was added to another, before the sum was read")
        return self.terms

    def settle(self, policy: Tensor, reference: Tensor) -> None:
        """Note both sums."""
        self.terms, self._found = None, (policy, reference)

    def _sums(self) -> tuple[Tensor, Tensor]:
        if self.terms is not None:
            with torch.set_grad_enabled(self._with_graph):
                terms = self.addends()
                assert terms is not None
                policy = terms[0] + terms[1]
            with torch.no_grad():
                self.settle(policy, terms[2] + terms[3])
        return self._found

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As for any `Lockstep`; what an addend knows as well does not compute the sum."""
        name = getattr(getattr(function, "__self__", None), "__name__", "")
        if name in OF_ADDENDS and isinstance(args[0], PendingSum) and args[0].terms is not None:
            return function(args[0].terms[0])
        return super().__torch_function__(function, types, args, kwargs)


OF_ADDENDS = frozenset(["shape", "dtype", "device", "ndim", "is_cuda"])
"""Attributes that a sum has from its addends."""


def in_lockstep(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what a function returns for the policy's and for the reference's arguments.

    Raises:
        NotImplementedError: it returns something other than tensors, and not the same for both; or a graph would be
            lost: `autograd.Function`s take a `Lockstep` for a tensor without one and turn gradients off.
    """
    if not torch.is_grad_enabled() and _has_graph(args):
        raise NotImplementedError("a function with a backward pass of its own does not run on policy and reference")
    policy_args, reference_args, adapters = _split(args)
    policy_kwargs = reference_kwargs = kwargs
    if kwargs:
        adapters = adapters_of_reference(kwargs) if adapters is None else adapters
        policy_kwargs, reference_kwargs = tensors_of(kwargs, "policy"), tensors_of(kwargs, "reference")
    policy = function(*policy_args, **policy_kwargs)
    with torch.no_grad():
        reference = function(*reference_args, **reference_kwargs)
        difference = _moved(function, args, kwargs)
    return together(policy, reference, adapters or (), difference)


def tensors_of(value: Any, role: Role) -> Any:
    """Return a value, or a list, tuple or dictionary of values, with one of its two tensors for each `Lockstep`."""
    if isinstance(value, Lockstep):
        return getattr(value, role)
    if isinstance(value, dict):
        return {key: tensors_of(one, role) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(tensors_of(one, role) for one in value)
    return value


def together(policy: Any, reference: Any, adapters: tuple[str, ...], difference: Any = None) -> Any:
    """Return results of policy and reference as one: tensors as `Lockstep`, also within lists, tuples and dictionaries.

    Args:
        policy, reference: what a function returned for each.
        adapters: as in `Lockstep`.
        difference: what it returned for what they differ by, or None.

    Raises:
        NotImplementedError: something other than tensors differs.
    """
    if policy is reference:
        return policy
    if isinstance(policy, Tensor) and isinstance(reference, Tensor) and policy.shape == reference.shape:
        return Lockstep(policy, reference, adapters, difference)
    if type(policy) is type(reference) and len(_items(policy)) == len(_items(reference)) > 0:
        if isinstance(policy, dict):
            return {key: together(one, reference[key], adapters) for key, one in policy.items()}
        moved = [None] * len(policy) if difference is None else difference
        parts = [together(one, other, adapters, own) for one, other, own in zip(policy, reference, moved, strict=True)]
        return type(policy)(parts)
    if not isinstance(policy, Tensor) and not isinstance(reference, Tensor) and bool(policy == reference):
        return policy
    raise NotImplementedError("the model's code looks at values, which differ between policy and reference")


def rejoined(value: Any, before: Any) -> Any:
    """Return a value with the reference's tensors again wherever it had them before, in `before`.

    Args:
        value: the policy's tensors of `before`; its tensors may have been cast.
        before: a `Lockstep`, or a list, tuple or dictionary of such and others.
    """
    if isinstance(before, Lockstep):
        reference, difference = before.reference.to(value.dtype), before.difference
        return Lockstep(value, reference, before.adapters, difference if value.dtype == before.dtype else None)
    if isinstance(before, dict):
        return {key: rejoined(value[key], one) for key, one in before.items()}
    if type(before) in (list, tuple):
        return type(before)(rejoined(mine, one) for mine, one in zip(value, before, strict=True))
    return value


def adapters_of_reference(value: Any) -> tuple[str, ...] | None:
    """Return the `adapters` of the first `Lockstep` among a value and what it holds; None if there is none."""
    if isinstance(value, Lockstep):
        return value.adapters
    for one in value.values() if isinstance(value, dict) else value if type(value) in (list, tuple) else ():
        if (found := adapters_of_reference(one)) is not None:
            return found
    return None


def _split(args: Sequence[Any]) -> tuple[list[Any], list[Any], tuple[str, ...] | None]:
    """Return `tensors_of` for policy and reference, and `adapters_of_reference`, in one walk: it runs at each call."""
    policy, reference, adapters = [], [], None
    for one in args:
        if isinstance(one, Lockstep):
            policy.append(one.policy)
            reference.append(one.reference)
            adapters = one.adapters if adapters is None else adapters
        elif type(one) in (list, tuple, dict):
            policy.append(tensors_of(one, "policy"))
            reference.append(tensors_of(one, "reference"))
            adapters = adapters_of_reference(one) if adapters is None else adapters
        else:
            policy.append(one)
            reference.append(one)
    return policy, reference, adapters


def _has_graph(args: Sequence[Any]) -> bool:
    return any(isinstance(one, Lockstep) and one.policy.grad_fn is not None for one in args)


def _items(value: Any) -> Any:
    return value if isinstance(value, (list, tuple, dict)) else ()


MOVING = ["contiguous", "clone", "detach", "expand", "flatten", "permute", "reshape", "squeeze", "swapaxes", "to"]
MOVING += ["transpose", "unflatten", "unsqueeze", "view"]
PICKING = ["__getitem__", "chunk", "index_select", "narrow", "select", "split"]
LINEAR = frozenset([*MOVING, *PICKING, "mul", "__mul__", "__rmul__"])
"""Functions that move or scale the elements of their first argument: what they do to a difference is right."""


SUMS = frozenset(["add", "__add__", "__radd__"])
"""Names of functions that add their two arguments."""


def _sum(function: Any, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Lockstep | None:
    """Return the sum of two tensors that are carried, or of one with another; None if it is something else."""
    if kwargs or len(args) != 2 or getattr(function, "__name__", "") not in SUMS:
        return None
    one, other = args
    both = isinstance(one, Lockstep) and isinstance(other, Lockstep)
    if not both or one.shape != other.shape or one.dtype != other.dtype:
        return None
    if one.difference is None and other.difference is None:
        return None if torch.is_inference_mode_enabled() else PendingSum(one, other)
    total = sum_with_graph(one.with_difference(), other.with_difference())
    return Lockstep(total.policy, total.reference, one.adapters, total.difference)


def _moved(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what a function makes of a carried difference; None if there is none, or it is not one of `LINEAR`."""
    name = getattr(function, "__name__", "")
    if name not in LINEAR or not args or not isinstance(args[0], Lockstep) or args[0].difference is None:
        return None
    others = [*args[1:], *kwargs.values()]
    if any(isinstance(one, (Lockstep, torch.dtype)) for one in others):
        return None
    return function(args[0].difference, *args[1:], **kwargs)


def _versions(*tensors: Tensor) -> list[int]:
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
