"""Another library's function signatures: the same names, order and defaults, and a warning for what has no effect.

A function decorated with `@foreign_signature` takes what that library's function takes. It is told which arguments the
caller gave: an argument that was given overrides the default of another. One warning names the arguments that do
nothing here and have another value than their default. An unknown argument is refused, with the nearest known names.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from wishbone.errors import RequestError

logger = logging.getLogger(__name__)


def foreign_signature(
    *, ignored: Mapping[str, str], further: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a function whose keyword-only parameter `given` takes the names of given arguments.

    Args:
        ignored: parameters that do nothing here and, in a phrase, why; they need not be in the signature.
        further: names that the function takes as `**further`.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        whole = inspect.signature(function)
        public = [p for p in whole.parameters.values() if p.name not in ("given", "further")]
        signature = whole.replace(parameters=public)
        names = [p.name for p in public]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            problems = []
            if len(args) > len(names):
                problems.append(
                    f"{function.__name__} takes {len(names)} arguments and got {len(args)}; give them by name"
                )
            for name in kwargs:
                if name in names[: len(args)]:
                    problems.append(f"{function.__name__} was given {name} twice; give it once")
                elif name not in {*names, *ignored, *further}:
                    near = difflib.get_close_matches(name, [*names, *further], n=3)
                    hint = f" (near: {', '.join(near)})" if near else ""
                    problems.append(
                        f"{function.__name__} has no argument {name!r}{hint}; remove it or correct its name"
                    )
            if problems:
                raise RequestError(problems)
            values = dict(zip(names, args, strict=False)) | kwargs
            _warn_of_ignored(function.__name__, values, signature, ignored)
            taken = {name: value for name, value in values.items() if name in names or name in further}
            return function(**taken, given=frozenset(values))

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


def _warn_of_ignored(
    function: str, values: dict[str, Any], signature: inspect.Signature, ignored: Mapping[str, str]
) -> None:
    parameters = signature.parameters
    idle = [
        f"{name}={value!r} ({ignored[name]})"
        for name, value in values.items()
        if name in ignored and not (name in parameters and value == parameters[name].default)
    ]
    if idle:
        logger.warning("%s: these arguments do nothing here: %s.", function, ", ".join(idle))
