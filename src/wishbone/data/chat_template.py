"""Chat templates are programs of the model's or data set's author, so they run with limits on time and memory.

transformers runs them in Jinja's sandbox, which gives no access to files and to Python's internals. The sandbox does
not limit their time: two loops over `range(99999)`, a macro that calls itself, `9 ** 9 ** 9`, a text doubled sixty
times. Here a timer ends a template that takes too long. In the main thread it is a signal, which also ends long
arithmetic; in another thread it is an exception that Python raises there. Memory is limited through the address space
of the process, if the system supports that.
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
"""A template of a real model takes about 0.0001 s per conversation."""
MEMORY, MEMORY_A_CHARACTER = 2**30, 64
"""Bytes that a template may allocate, and additional bytes per character of the conversations."""
REMEDY = "correct tokenizer.chat_template, or use a model whose template works"

REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""Errors that a template raises for a conversation that it does not accept, and for its own mistakes."""

Answer = TypeVar("Answer")


class _Endless(BaseException):
    """Raised inside a template that takes too long; no `except Exception` of Jinja catches it."""


def rendered(render: Callable[[], Answer], *, conversations: int, characters: int = 0) -> Answer:
    """Return `render()`, which runs a chat template.

    Args:
        render: runs the template.
        conversations: how many it renders; each adds to the allowed time.
        characters: how many they have in all; each adds to the allowed memory.

    Raises:
        RequestError: the template does not end, takes too much memory, or cannot be compiled.
        REFUSALS: the template refuses a conversation.
    """
    seconds = SECONDS + SECONDS_A_CONVERSATION * conversations
    try:
        with _time(seconds), _memory(MEMORY + MEMORY_A_CHARACTER * characters):
            return render()
    except _Endless:
        raise RequestError(f"the chat template did not end within {seconds:.0f} s; {REMEDY}") from None
    except MemoryError:
        raise RequestError(f"the chat template needs too much memory; {REMEDY}") from None
    except RecursionError:
        raise RequestError(f"the chat template calls itself endlessly, or nests too deeply; {REMEDY}") from None
    except SyntaxError as error:
        raise RequestError(f"the chat template cannot be compiled ({error.msg}); {REMEDY}") from None


@contextmanager
def _time(seconds: float) -> Iterator[None]:
    """Raise `_Endless` inside the block after `seconds`."""
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
    """Limit the block to `size` more bytes of address space; no limit on systems that do not support it."""
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
