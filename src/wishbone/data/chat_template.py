"""Chat templates are programs of whoever made the model, or the data set: they run with bounds on time and memory.

transformers runs them in Jinja's sandbox, which keeps them from files and from Python's internals. It does not keep
them from ending: two loops over `range(99999)`, a macro that calls itself, `9 ** 9 ** 9`, a text doubled sixty times.
A timer ends what takes too long. In the main thread it is a signal, which also ends long arithmetic; in another one it
is an exception that Python raises there. Memory is bounded by the address space of the process, where the system has
such a limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from jinja2 import TemplateError

from wishbone.errors import RequestError

SECONDS, SECONDS_A_CONVERSATION = 15.0, 0.02
"""A template of a real model takes some 0.0001 s for a conversation."""
MEMORY, MEMORY_A_CHARACTER = 2**30, 64
"""Bytes beyond what the process has, and beyond that for each character of the conversations."""
REMEDY = "correct tokenizer.chat_template, or use a model whose template works"

REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What a template raises for a conversation that it does not take, and for mistakes of its own."""

Answer = TypeVar("Answer")


class _Endless(BaseException):
    """Raised inside a template that takes too long; no `except Exception` of Jinja catches it."""


def rendered(render: Callable[[], Answer], *, conversations: int, characters: int = 0) -> Answer:
    """Return `render()`, which runs a chat template.

    Args:
        render: runs the template.
        conversations: that it renders; each adds to the time it may take.
        characters: in all of them; each adds to the memory it may take.

    Raises:
        RequestError: the template does not come to an end, takes too much memory, or cannot be compiled.
        REFUSALS: it refuses a conversation.
    """
    seconds = SECONDS + SECONDS_A_CONVERSATION * conversations
    try:
        with _time(seconds), _memory(MEMORY + MEMORY_A_CHARACTER * characters):
            return render()
    except _Endless:
        raise RequestError(f"the chat template did not come to an end in {seconds:.0f} s; {REMEDY}") from None
    except MemoryError:
        raise RequestError(f"the chat template writes more than fits the memory; {REMEDY}") from None
    except RecursionError:
        raise RequestError(f"the chat template calls itself without an end, or nests too deeply; {REMEDY}") from None
    except SyntaxError as error:
        raise RequestError(f"the chat template cannot be compiled ({error.msg}); {REMEDY}") from None


@contextmanager
def _time(seconds: float) -> Iterator[None]:
    """Raise `_Endless` inside the block when it takes longer."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        with _alarm(seconds):
            yield
    else:
        with _interruption(seconds):
            yield


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise _Endless

    earlier: Any = signal.signal(signal.SIGALRM, end)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, earlier)


@contextmanager
def _interruption(seconds: float) -> Iterator[None]:
    thread = ctypes.c_ulong(threading.get_ident())

    def end() -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_Endless))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _memory(size: int) -> Iterator[None]:
    """Let the block take so many bytes of address space; where the system keeps no such account, whatever it takes."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken + size
    if soft != resource.RLIM_INFINITY and soft < limit:
        yield
        return
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
