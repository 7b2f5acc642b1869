"""How `wishbone train` ends: a message, an exit status, and the command that continues the run.

Exit status 0: done; 1: the run failed; 2: the request was wrong; 128 + the number of the signal that stopped it.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from wishbone.atomic_file import write_text
from wishbone.cli.console import plain, say, screen
from wishbone.cli.request import TRACEBACK_VARIABLE
from wishbone.config.emit import quoted
from wishbone.config.run_directory import CHECKPOINTS, CONFIG_FILE, ERROR_LOG, checkpoints_in, removed_meanwhile
from wishbone.errors import GONE, RequestError, RunError, lost_another
from wishbone.run.lasting_output import OutputFailed
from wishbone.run.launch import STARTED_AS
from wishbone.run.processes import is_first_process
from wishbone.run.stop_signals import Stopped


@dataclass
class Attempt:
    """One call of `wishbone train`.

    Attributes:
        config: the file, as it was named.
        overrides: as they were given.
        directory: of the run, once it is claimed.
    """

    config: Path
    overrides: list[str]
    directory: Path | None = None

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Turn a failure or a signal into a message and an exit status."""
        try:
            yield
        except (typer.Exit, RequestError, OutputFailed):
            raise
        except Stopped as stopped:
            if is_first_process():  # which has the directory and knows what is there
                self._say_stopped(stopped)
            raise typer.Exit(stopped.status) from stopped
        except RunError as error:
            newest = self._newest_checkpoint()
            kept = f"\n{newest} is the last checkpoint, and it is whole" if newest else ""
            say(f"{error}{kept}", marker="failed: ", style="bold red", error=True)
            if error.resumable:
                self._print_resume_command()
            raise typer.Exit(1) from error
        except Exception as error:
            gone = removed_meanwhile(self.directory) if self.directory and isinstance(error, OSError) else None
            say(gone or self._failed(error), marker="failed: ", style="bold red", error=True)
            self._print_resume_command()
            raise typer.Exit(1) from error

    def left(self) -> str:
        """What the run leaves behind, in one sentence; the command that continues it below."""
        newest = self._newest_checkpoint()
        if newest is not None:
            return f"{newest.name} is in {newest.parent}; to continue from it:\n{self.resume_command()}"
        if self.directory is None or not (self.directory / CONFIG_FILE).exists():
            return "nothing was written"
        return "no checkpoint was written yet, so there is nothing to resume"

    def resume_command(self) -> str:
        """The command that continues the run from where this one was started, as a shell reads it."""
        kept = [override for override in self.overrides if override.partition("=")[0].strip() != "output.dir"]
        text = str(self.directory)
        text = text if text == text.strip() and text.isprintable() else quoted(text)
        started = shlex.split(os.environ.get(STARTED_AS, ""))
        return shlex.join([*_program(), "train", str(self.config), *kept, f"output.dir={text}", *started, "--resume"])

    def _say_stopped(self, stopped: Stopped) -> None:
        newest = self._newest_checkpoint()
        where = f"; {newest.name} is in {newest.parent}; to continue from it:" if newest else f"; {self.left()}"
        say(f"by {stopped.signal.name}{where}", marker="stopped: ", style="bold yellow", error=True)
        self._print_resume_command()

    def _print_resume_command(self) -> None:
        """On a line of its own, whole, for copying."""
        if self._newest_checkpoint() is not None:
            screen(error=True).print(plain(self.resume_command()), soft_wrap=True)

    def _newest_checkpoint(self) -> Path | None:
        if self.directory is None:
            return None
        return next(reversed(checkpoints_in(self.directory / CHECKPOINTS)), None)

    def _failed(self, error: Exception) -> str:
        """Type and text of an error, and where its traceback is."""
        text = GONE if lost_another(error) else f"{type(error).__name__}: {error}"
        if "out of memory" in str(error).lower():
            text += (
                "\nTo use less memory, lower training.token_budget or data.max_length or set "
                "training.activations=recompute"
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            text += "\nThe disk is full: make room on it, or name another directory with output.dir"
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
            return text
        if self.directory is None:
            return f"{text}\n{TRACEBACK_VARIABLE}=1 shows the traceback"
        log = self.directory / ERROR_LOG
        try:
            write_text(log, "".join(traceback.format_exception(error)))
        except OSError as unwritable:
            return (
                f"{text}\nThe traceback could not be written ({unwritable.strerror}); {TRACEBACK_VARIABLE}=1 shows it"
            )
        return f"{text}\nFull traceback: {log} ({TRACEBACK_VARIABLE}=1 shows it here)"


def _program() -> list[str]:
    """The words that start this program, as it was started."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not os.environ.get(STARTED_AS):
        return ["torchrun", f"--nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', '1')}", "-m", "wishbone"]
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return [sys.executable, "-m", "wishbone"]
    found = shutil.which("wishbone")
    return ["wishbone" if found is None or called.name != "wishbone" or Path(found).samefile(called) else str(called)]
