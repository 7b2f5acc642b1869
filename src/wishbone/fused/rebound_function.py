"""A copy of a function in which some global names are replaced.

A function looks up the names that it does not define in the globals of its module, at every call. A copy with other
globals therefore calls something else under the same name, and the module, the function and everybody who uses them
stay as they are.

Functions come wrapped: a decorator returns a function of its own that keeps the decorated one in its closure, with
`functools.wraps` or without it, and decorators stand on each other. So the copy goes down: a function whose closure
holds a function that is copied is copied too, around that copy. Helper functions of the same module are followed in the
same way. What a decorator does before and after the call is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType
from typing import Any

Replace = Callable[[str, Any], Any]
"""Given a name and its value, what the name means in the copy; None leaves it."""


def rebound(function: FunctionType, replace: Replace) -> FunctionType | None:
    """Return a copy of `function` with global names replaced as `replace` says, or None if it uses none of them.

    Args:
        function: a function of a module; nothing of it is changed.
        replace: called for each name of the module that the function, what it wraps and its helpers look up. The copy
            has the other values as they are now.
    """
    return _Copier(replace).copy_of(function)


def names_in(function: FunctionType) -> set[str]:
    """Return the global names and attributes that a function, what it wraps and its helpers of one module use."""
    names: set[str] = set()
    waiting, seen = [function], set()
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            names.update(_names_of(one.__code__))
            waiting += [found for _, found in _wrapped_by(one)]
            waiting += [found for _, found in _helpers_of(one)]
    return names


class _Copier:
    def __init__(self, replace: Replace) -> None:
        self._replace = replace
        self._copies: dict[FunctionType, FunctionType | None] = {}

    def copy_of(self, function: FunctionType) -> FunctionType | None:
        if function not in self._copies:
            self._copies[function] = None  # what calls itself, directly or not, keeps calling itself
            self._copies[function] = self._copy(function)
        return self._copies[function]

    def _copy(self, function: FunctionType) -> FunctionType | None:
        cells = {i: copy for i, inner in _wrapped_by(function) if (copy := self.copy_of(inner)) is not None}
        changed = self._changed_globals(function)
        if not cells and not changed:
            return None
        closure = tuple(CellType(cells[i]) if i in cells else cell for i, cell in enumerate(function.__closure__ or ()))
        names = {**function.__globals__, **changed} if changed else function.__globals__
        copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure or None)
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__qualname__, copy.__doc__ = function.__qualname__, function.__doc__
        vars(copy).update(vars(function))
        return copy

    def _changed_globals(self, function: FunctionType) -> dict[str, Any]:
        used = {
            name: function.__globals__[name] for name in _names_of(function.__code__) if name in function.__globals__
        }
        changed = {name: other for name, value in used.items() if (other := self._replace(name, value)) is not None}
        for name, helper in _helpers_of(function):
            if name not in changed and (copy := self.copy_of(helper)) is not None:
                changed[name] = copy
        return changed


def _names_of(code: CodeType) -> set[str]:
    """Names that a function and the functions defined inside it look up, as globals or as attributes."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names_of, inner))


def _wrapped_by(function: FunctionType) -> Iterator[tuple[int, FunctionType]]:
    """Functions in the closure of a function, with the position of their cell."""
    for i, cell in enumerate(function.__closure__ or ()):
        try:
            value = cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
        if isinstance(value, FunctionType):
            yield i, value


def _helpers_of(function: FunctionType) -> Iterator[tuple[str, FunctionType]]:
    """Functions of the same module that a function looks up, with their names."""
    for name in _names_of(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) and value.__globals__ is function.__globals__:
            yield name, value
