"""Rotary position embeddings of any transformers model in one pass over queries and keys, for as long as a step runs.

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
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from wishbone.fused.instance_attributes import InstanceAttributes, slot_of
from wishbone.fused.rebound_function import names_in, rebound
from wishbone.fused.rounding import differs_by_rounding
from wishbone.ops.rotary import rotary

NAME = re.compile(r"apply\w*(rot|rope)|(rot\w*|rope)_(fn|func|function)$")
"""Names that model families give functions which turn queries and keys."""
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
        self._attributes = InstanceAttributes()
        methods = _MethodsByClass()
        for name, module in model.named_modules():
            if everywhere or any(p.is_cuda for p in module.parameters()):
                self._find(name, module, methods.of(type(module)))

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
            if slot is not None and (copy := rebound(method, replace)) is not None:
                self._attributes.add(module, slot, MethodType(copy, module))
        if found:
            self.layers[name] = found


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
    """Stands for the rotary embedding of one layer: ours once it was seen to agree, else the family's own.

    Args:
        own: the family's function.

    Attributes:
        agrees: whether ours agrees, by kind of call; empty before the first.
    """

    def __init__(self, own: Callable[..., Any]) -> None:
        self._own = own
        self.agrees: dict[tuple[Any, ...], bool] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        if kwargs or not _has_usual_shapes(args):
            return self._own(*args, **kwargs)
        q, k, cos, sin = args
        kind = (q.dtype, cos.dtype, q.shape[1], k.shape[1], q.shape[3], cos.shape[2])
        if kind not in self.agrees:
            self.agrees[kind] = self._compare(q, k, cos, sin)
        return rotary(q, k, cos, sin) if self.agrees[kind] else self._own(q, k, cos, sin)

    @torch.no_grad()
    def _compare(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
        """Whether ours is the family's own on the last tokens of this input, but for rounding."""
        q, k, cos, sin = q[:, :, -64:], k[:, :, -64:], cos[:, -64:], sin[:, -64:]
        own = self._own(q, k, cos, sin)
        return all(differs_by_rounding(a, b, TOLERANCE) for a, b in zip(rotary(q, k, cos, sin), own, strict=True))


def _has_usual_shapes(args: tuple[Any, ...]) -> bool:
    if len(args) != 4 or not all(isinstance(one, Tensor) for one in args):
        return False
    q, k, cos, sin = args
    return (
        q.ndim == k.ndim == 4
        and cos.ndim == 3
        and cos.shape == sin.shape
        and cos.shape[0] in (1, q.shape[0])
        and cos.shape[1] == q.shape[2] == k.shape[2]
        and q.shape[3] == k.shape[3] >= cos.shape[2]
        and cos.shape[2] % 2 == 0
        and q.dtype == k.dtype
        and q.dtype in TOLERANCE
    )
