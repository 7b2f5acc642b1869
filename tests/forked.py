"""The command `wishbone` in a child of this process, which begins with all that this one has imported.

A start of Python with torch, transformers and TRL takes some seven seconds of processor time, a fork none. Streams,
folder, environment and signals are the child's own, and nothing that it does reaches this process. What a command
does in its first moments is tested with `python -m wishbone`, and so is everything in `make soak`. Where there is a
GPU, a child could not use it: commands are started as programs there.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest


class Forked:
    """A call in a forked child, with as much of `subprocess.Popen` as the tests use. Its output is kept in files.

    Args:
        call: what the child does; its exit status is that of a program which does nothing else.
        folder: its working directory.
        environment: its variables, instead of this process's.
    """

    def __init__(self, call: Callable[[], object], folder: Path, environment: Mapping[str, str]) -> None:
        if not can_fork():
            pytest.skip("needs a process that uses no GPU")
        self.returncode: int | None = None
        self._streams = tuple(tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2))  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run(call, folder, environment)

    def _run(self, call: Callable[[], object], folder: Path, environment: Mapping[str, str]) -> NoReturn:
        """The child's whole life; it never returns into the test."""
        status: object = 1
        try:
            gc.freeze()  # as in conftest.py
            if torch := sys.modules.get("torch"):  # makes torch's pool anew; two threads that do it at once may fail
                torch.set_num_threads(torch.get_num_threads())
            for descriptor, stream in enumerate(self._streams, 1):
                os.dup2(stream.fileno(), descriptor)
            sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            call()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:  # noqa: BLE001  what a program prints at its end
            traceback.print_exc()
        finally:
            for output in (sys.stdout, sys.stderr):
                output.flush()
            os._exit(status if isinstance(status, int) else 1)

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait for its end, by force after `timeout` seconds; return what it wrote to standard output and error."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.02)
        return tuple(read(stream) for stream in self._streams)  # type: ignore[return-value]


def read(stream: IO[str]) -> str:
    """All that a file holds."""
    stream.seek(0)
    return stream.read()


def can_fork() -> bool:
    """Whether a child can use what this process has begun to use."""
    torch = sys.modules.get("torch")
    return not (torch and torch.cuda.is_available())


def started(command: list[str], folder: Path | None = None, environment: Mapping[str, str] | None = None) -> Any:
    """Start a program of Python."""
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**(environment or os.environ), **path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def forked_command(arguments: list[str], folder: Path, environment: Mapping[str, str]) -> Any:
    """Start `wishbone` with these arguments."""

    def command() -> None:
        from wishbone.__main__ import main

        sys.argv = ["wishbone", *arguments]
        main()

    return (
        Forked(command, folder, environment)
        if can_fork()
        else started(["-m", "wishbone", *arguments], folder, environment)
    )
