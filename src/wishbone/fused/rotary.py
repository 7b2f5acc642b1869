"""Rotary position embeddings of any transformers model in one pass over queries and keys, while a step runs.

Written in PyTorch, a rotary embedding makes six passes over memory. Families write it as a function of their module,
which attention layers call by name. Each layer gets copies of its own methods in which that name means ours
(`rebound_function.py`), whatever decorators stand around them; a function that a layer keeps as an attribute or a
submodule is replaced on that layer. Modules of transformers and other models stay as they are.

What a family's function computes is found out at a layer's first call, which runs both on the same input: ours stands
in where the two differ by no more than rounding, and the family's own runs where they differ.

transformers marks these functions for kernels from the Hub (`use_kernel_forward_from_hub`, `use_kernelized_func`). That
registered point does not serve here: it does nothing without the package `kernels`, and with it a function becomes one
object for all models of the process, whose forward `kernelize` replaces for good. `apply_liger_kernel_to_*` of
liger-kernel, too, replaces functions in transformers' modules for every model of the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from types import FunctionType, MethodType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from wishbone.fused.coverage import NO_GPU, Site
from wishbone.fused.instance_attributes import REPLACED, InstanceAttributes, slot_of
from wishbone.fused.lockstep import adapters_of_reference, in_lockstep
from wishbone.fused.parts import has_rotary_embedding, part_of
from wishbone.fused.rebound_function import names_in, rebound
from wishbone.fused.rounding import differs_by_rounding
from wishbone.ops.compiled_ahead import hands_over
from wishbone.ops.rotary import Form, rotary, turned_elements

NAME = re.compile(r"apply\w*(rot|rope)|(rot\w*|rope)_(fn|func|function)$")
"""Names that model families give functions which turn queries and keys."""
MOST_SHAPES = 256
"""Of how many shapes of calls a layer remembers the form."""
FORMS: tuple[Form, ...] = get_args(Form)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Relative difference that rounding explains."""


class FusedRotary:
    """Finds rotary embeddings in a model and switches them on and off.

    Args:
        model: a transformers model. Nothing of it is changed.
        everywhere: also on devices other than CUDA, where it gains little.

    Attributes:
        layers: the functions that each layer calls to turn queries and keys, by the layer's name.
    """

    def __init__(self, model: nn.Module, *, everywhere: bool = False) -> None:
        self.layers: dict[str, list[Rotary]] = {}
        self._left: dict[str, str] = {}
        self._attributes = InstanceAttributes()
        methods, turns = _MethodsByClass(), has_rotary_embedding(model)
        for name, module in model.named_modules():
            if everywhere or any(p.is_cuda for p in module.parameters()):
                self._find(name, module, methods.of(type(module)))
            elif methods.of(type(module)):
                self._left[name] = NO_GPU
            if turns and part_of(module) == "attention" and name not in self.layers:
                self._left.setdefault(name, _why_not_found(module))

    def sites(self) -> Iterator[Site]:
        """Yield every layer with a rotary embedding; after a pass, only layers that have used it, if any has."""
        yield from (Site("rotary embedding", name, reason) for name, reason in self._left.items())
        called = {name: one for name, one in self.layers.items() if any(r.forms or r.other_calls for r in one)}
        for name, found in (called or self.layers).items():
            reasons = [reason for one in found if (reason := one.why_not()) is not None]
            if not called:
                reasons = ["their rotary embedding was not called"]
            yield Site("rotary embedding", name, reasons[0] if reasons else None)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context of forward passes and of the backward passes that recompute them; it may be entered again inside."""
        with self._attributes.replaced():
            yield

    def _find(self, name: str, module: nn.Module, methods: dict[str, FunctionType]) -> None:
        """Note how the methods of one layer are replaced, and the functions that it keeps."""
        found: list[Rotary] = []

        def replace(of: str, value: Any) -> Rotary | None:
            if not NAME.search(of) or not callable(value) or isinstance(value, type):
                return None
            found.append(Rotary(value))
            return found[-1]

        kept = {attribute for method in methods.values() for attribute in names_in(method)}
        for attribute in sorted(kept):
            if attribute not in methods and (ours := replace(attribute, getattr(module, attribute, None))):
                self._attributes.add(module, attribute, ours)
        for attribute, method in methods.items():
            slot = slot_of(module, attribute, method)
            if slot is None:
                self._left[name] = REPLACED
            elif (copy := rebound(method, replace)) is not None:
                self._attributes.add(module, slot, MethodType(copy, module))
        if found and name not in self._left:
            self.layers[name] = found


def _why_not_found(module: nn.Module) -> str:
    """Why no rotary embedding was found in an attention layer of a model that has angles for one."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType):
        return f"their forward is wrapped in an object of the class {type(forward).__name__}, which hides its function"
    return f"{type(module).__name__} calls no function with a name like apply_rotary_pos_emb"


class _MethodsByClass:
    """Methods of modules in which a name like that of a rotary embedding is used; each class is read once."""

    def __init__(self) -> None:
        self._known: dict[type, dict[str, FunctionType]] = {}

    def of(self, kind: type) -> dict[str, FunctionType]:
        if kind not in self._known:
            own = kind.__mro__[: kind.__mro__.index(nn.Module)]
            methods = {name: value for one in reversed(own) for name, value in vars(one).items()}
            self._known[kind] = {
                name: value
                for name, value in methods.items()
                if isinstance(value, FunctionType) and any(map(NAME.search, names_in(value)))
            }
        return self._known[kind]


class Rotary:
    """Stands for one function of one layer: ours once it was seen to agree, else the family's own.

    Families call it with queries and keys, or with one of them, with the dimension of heads before that of tokens or
    behind it, and pair the elements of a head in several ways (`ops/rotary/pairs.py`). The first call of a kind tries
    which of these agrees.

    Args:
        own: the family's function, or a module that computes it.

    Attributes:
        own: the same.
        forms: how the elements of a head are paired, by kind of call, None where no form agrees; empty before a call.
        other_calls: whether a call had arguments of another kind than a rotary embedding of queries and keys.
    """

    def __init__(self, own: Callable[..., Any]) -> None:
        self.own = own
        self.forms: dict[tuple[Any, ...], Form | None] = {}
        self.other_calls = False
        self._arguments = _Arguments(own)
        self._seen: dict[tuple[Any, ...], Form] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return queries and keys, or one of them, turned.

        It runs at each call of each layer, so shapes that were seen before are looked up and not looked at.
        """
        if adapters_of_reference((args, kwargs)) is not None:
            return in_lockstep(self, args, kwargs)
        if kwargs or len(args) != 4 or not isinstance(args[3], Tensor):
            return self._call(args, kwargs)
        query, key, cos, sin = args
        shapes = query.shape, key.shape, cos.shape, sin.shape, query.dtype, key.dtype, cos.dtype
        form = self._seen.get(shapes)
        if form is not None:
            return rotary(query, key, cos, sin, form=form)
        return self._call(args, kwargs, shapes)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: tuple[Any, ...] | None = None) -> Any:
        """Return what a call in any order of arguments returns; note the form for `shapes`."""
        tensors, heads_dim = args, self._arguments.heads_dim
        if shapes is None:
            tensors, heads_dim = self._arguments.in_order(args, kwargs)
        if not _is_usual(tensors, heads_dim):
            self.other_calls = True
            return self.own(*args, **kwargs)
        first, cos = tensors[0], tensors[-2]
        kind = (len(tensors), heads_dim, first.dtype, cos.dtype, first.shape[3], cos.shape[2])
        if kind not in self.forms and hands_over():  # any form will do, and nothing is learned of this one
            return _turned(tensors, heads_dim, next(_forms_of(tensors)))
        form = self.forms[kind] if kind in self.forms else self._try(kind, args, kwargs, tensors, heads_dim)
        if form is None:
            return self.own(*args, **kwargs)
        if shapes is not None and heads_dim == 1:
            if len(self._seen) == MOST_SHAPES:
                self._seen.clear()
            self._seen[shapes] = form
        return _turned(tensors, heads_dim, form)

    @torch.no_grad()
    def _try(
        self, kind: tuple[Any, ...], args: Any, kwargs: dict[str, Any], tensors: tuple[Tensor, ...], heads_dim: int
    ) -> Form | None:
        """Return and note the form that is the family's own on the last tokens of this input, but for rounding.

        Nothing is noted where all angles are about 0, which any form leaves as it is.
        """
        last = tuple(_last_tokens(x, 3 - heads_dim if x.ndim == 4 else 1) for x in tensors)
        if not last[-1].abs().max() > 0.1:
            return None
        short = {id(x): y for x, y in zip(tensors, last, strict=True)}
        own = self.own(
            *(short.get(id(x), x) for x in args), **{name: short.get(id(x), x) for name, x in kwargs.items()}
        )
        expected = (own,) if isinstance(own, Tensor) else tuple(own)
        for form in _forms_of(last):
            ours = _turned(last, heads_dim, form)
            got = (ours,) if isinstance(ours, Tensor) else ours
            if len(got) == len(expected) and all(map(_agree, got, expected)):
                self.forms[kind] = form
                return self.forms[kind]
        self.forms[kind] = None
        return None

    def why_not(self) -> str | None:
        """Return why calls so far ran the family's own function; None where none did."""
        name = getattr(self.own, "__name__", type(self.own).__name__)
        if None in self.forms.values():
            return f"{name} pairs elements in an unknown way, or computes more than a rotary embedding"
        if self.other_calls:
            return f"{name} is called with other arguments than queries, keys, cosines and sines"
        return None


class _Arguments:
    """Puts the arguments of a family's function in the order in which it declares them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = signature(function.forward if isinstance(function, nn.Module) else function)
        defaults = [one.default for one in self._signature.parameters.values()]
        self.heads_dim = next((default for default in defaults if type(default) is int), 1)
        self._orders: dict[tuple[Any, ...], list[Any]] = {}

    def in_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], int]:
        """Return the arguments that are not integers, and the dimension of heads; None is left out."""
        call = (len(args), *kwargs)
        if call not in self._orders:
            bound = self._signature.bind(*range(len(args)), **{name: name for name in kwargs})
            self._orders[call] = [*bound.args, *bound.kwargs.values()]
        values = [args[at] if isinstance(at, int) else kwargs[at] for at in self._orders[call]]
        dims = [value for value in values if type(value) is int]
        rest = tuple(value for value in values if value is not None and type(value) is not int)
        return rest, dims[0] if dims else self.heads_dim


def _turned(tensors: tuple[Tensor, ...], heads_dim: int, form: Form) -> Any:
    """Return queries and keys, or one of them, rotated by the op; heads are in `heads_dim` before and after."""
    *states, cos, sin = tensors
    if heads_dim == 2:
        states = [x.transpose(1, 2) for x in states]
    query = states[0]
    key = states[1] if len(states) == 2 else query.detach()[:, :0]
    turned = rotary(query, key, cos, sin, form=form)
    if heads_dim == 2:
        turned = turned[0].transpose(1, 2), turned[1].transpose(1, 2)
    return turned if len(states) == 2 else turned[0]


def _forms_of(tensors: tuple[Tensor, ...]) -> Iterator[Form]:
    """Yield the forms that heads and angles of these sizes can have, the usual one first."""
    for form in FORMS:
        width = turned_elements(form, tensors[-1].shape[2])
        if width % 2 == 0 and width <= tensors[0].shape[3]:
            yield form


def _agree(ours: Any, own: Any) -> bool:
    return isinstance(own, Tensor) and differs_by_rounding(ours, own, TOLERANCE)


def _last_tokens(x: Tensor, dim: int) -> Tensor:
    start = max(0, x.shape[dim] - 64)
    return x.narrow(dim, start, x.shape[dim] - start)


def _is_usual(tensors: tuple[Any, ...], heads_dim: int) -> bool:
    """Whether arguments are queries and keys, or one of them, and cos and sin of their positions."""
    if len(tensors) not in (3, 4) or heads_dim not in (1, 2) or not all(isinstance(one, Tensor) for one in tensors):
        return False
    first, last, cos, sin = tensors[0], tensors[-3], tensors[-2], tensors[-1]
    return (
        first.ndim == last.ndim == 4
        and cos.ndim == 3
        and cos.shape == sin.shape
        and cos.shape[0] in (1, first.shape[0])
        and cos.shape[1] == first.shape[3 - heads_dim] == last.shape[3 - heads_dim]
        and first.shape[3] == last.shape[3] >= cos.shape[2]
        and first.dtype == last.dtype
        and first.dtype in TOLERANCE
    )
