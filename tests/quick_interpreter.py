"""Triton's interpreter without what takes nearly half of its time and changes no result.

A launch replaces the functions of `triton.language` by interpreted ones and puts the old ones back at its end. Each
call of a function inside the kernel would replace them again, in all of the language. Besides, every sum and product
of integers is computed once more in 64 bits to see whether it overflows, which at the sizes of tests none does.
"""

from __future__ import annotations

import dataclasses
from types import FunctionType


def quicken() -> None:
    """Change the interpreter of this process; a version of Triton that is built otherwise stays as it is."""
    import triton.language as tl
    from triton.runtime import interpreter

    replace_all = getattr(interpreter, "_patch_lang", None)
    replacements = getattr(interpreter, "_LangPatchScope", None)
    if replace_all is None or replacements is None:
        return

    def replace_what_is_left(function: FunctionType) -> object:
        seen = [module for module in function.__globals__.values() if module is tl or module is tl.core]
        return replace_all(function) if any(tl.core.is_builtin(module.load) for module in seen) else replacements()

    interpreter._patch_lang = replace_what_is_left
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
