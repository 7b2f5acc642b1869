"""Attributes of single modules that are replaced while a step runs, and then restored.

A module that has a `forward` of its own runs that instead of its class's, and no other module notices. Some have one
already: `kernelize` gives each module that it has no kernel for the forward of its class, and accelerate's hooks keep
the class's as `_old_forward` beside a `forward` of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

from torch import nn

REPLACED = "something else has replaced their forward"
"""Why a module keeps its forward whose class's own is not found in it."""
_MISSING = object()


def slot_of(module: nn.Module, method: str = "forward", function: FunctionType | None = None) -> str | None:
    """Return the attribute through which a module runs a method of its class; None where it runs something else.

    Args:
        module: any module.
        method: the method's name.
        function: the method, where the caller has it.
    """
    own = vars(module)
    if method not in own:
        return method
    function = getattr(type(module), method) if function is None else function
    for slot in (method, "_old_forward") if method == "forward" else (method,):
        if isinstance(own.get(slot), MethodType) and own[slot].__func__ is function:
            return slot
    return None


class InstanceAttributes:
    """Attributes of modules that have other values within `replaced()`."""

    def __init__(self) -> None:
        self._values: list[tuple[dict[str, Any], str, Any, Any]] = []
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []
        self._depth = 0

    def add(self, module: nn.Module, attribute: str, value: Any) -> None:
        """Set the value of a module's attribute within `replaced()`.

        It stays as it is where somebody has given it another value since this call.
        """
        own = vars(module)
        self._values.append((own, attribute, own.get(attribute, _MISSING), value))

    @contextmanager
    def replaced(self) -> Iterator[bool]:
        """Context in which the attributes have their other values; it may be entered again inside.

        Yields:
            Whether this is the outermost one.
        """
        outermost = self._depth == 0
        if outermost:
            for own, attribute, before, value in self._values:
                if own.get(attribute, _MISSING) is before:
                    own[attribute] = value
                    self._replaced.append((own, attribute, before))
        self._depth += 1
        try:
            yield outermost
        finally:
            self._depth -= 1
            if outermost:
                self._restore()

    def _restore(self) -> None:
        for own, attribute, before in self._replaced:
            if before is _MISSING:
                del own[attribute]
            else:
                own[attribute] = before
        self._replaced.clear()
