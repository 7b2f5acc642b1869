"""`wishbone train`: one run from a configuration file; with `--dry-run` only its plan."""

from __future__ import annotations

import os
import shlex
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from wishbone.cli.console import plain, say, screen
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.request import TRACEBACK_VARIABLE, requested
from wishbone.config.cautions import cautions
from wishbone.config.load import load_config
from wishbone.config.run_directory import CHECKPOINTS, choose_run_directory
from wishbone.config.schema import RunConfig
from wishbone.process_memory import keep_host_memory, let_device_memory_grow
from wishbone.run.preflight import check_access

ERROR_LOG = "error.log"
INTERRUPTED = 130


def train(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="File of the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Values that replace those of the file.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint of the run.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check settings and every pair, print the plan; load no weights."),
    ] = False,
) -> None:
    """Train on preference pairs."""
    overrides = overrides or []
    with requested():
        config = _configured(config_path, overrides, resume=resume)
        check_access(config, writes=not dry_run)
    directory = Path(str(config.output.dir))
    with _outcome(None if dry_run else directory, _resume_command(config_path, overrides, directory)), requested():
        settle_libraries()
        if dry_run:
            from wishbone.cli.dry_run import print_plan

            print_plan(config)
        else:
            keep_host_memory()
            let_device_memory_grow()
            from wishbone.run.run import train as run

            say(str(run(config, resume=resume)), marker="done: ", style="bold green")


def _configured(path: Path, overrides: list[str], *, resume: bool) -> RunConfig:
    """The configuration with its run directory; prints cautions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        config = load_config(path, overrides)
    for caution in cautions(config):
        say(caution, marker="note: ", style="bold yellow", error=True)
    directory = choose_run_directory(config, name=path.stem, resume=resume)
    return config.model_copy(update={"output": config.output.model_copy(update={"dir": str(directory)})})


@contextmanager
def _outcome(directory: Path | None, resume_command: str) -> Iterator[None]:
    """Turn a failure or an interruption into a message and an exit status; `directory`: None if nothing is written."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt as error:
        _interrupted(directory, resume_command)
        raise typer.Exit(INTERRUPTED) from error
    except Exception as error:
        say(_failed(error, directory), marker="failed: ", style="bold red", error=True)
        raise typer.Exit(1) from error


def _interrupted(directory: Path | None, resume_command: str) -> None:
    """Print what a run that was stopped leaves behind, and on a line of its own the command that continues it."""
    resumable = directory is not None and any((directory / CHECKPOINTS).glob("checkpoint-*"))
    if directory is None:
        left = "nothing was written"
    elif resumable:
        left = f"checkpoints are in {directory / CHECKPOINTS}; to continue from the last one:"
    else:
        left = "no checkpoint was written yet, so there is nothing to resume; training.save_steps sets how often one is"
    say(left, marker="stopped: ", style="bold yellow", error=True)
    if resumable:
        screen(error=True).print(plain(resume_command), soft_wrap=True)


def _failed(error: Exception, directory: Path | None) -> str:
    """Type and text of an error, and where its traceback is."""
    text = f"{type(error).__name__}: {error}"
    if "out of memory" in str(error).lower():
        text += (
            "\nTo use less memory, lower training.token_budget or data.max_length or set training.activations=recompute"
        )
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
        return text
    if directory is None:
        return f"{text}\n{TRACEBACK_VARIABLE}=1 shows the traceback"
    log = directory / ERROR_LOG
    try:
        directory.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
    except OSError as unwritable:
        return f"{text}\nThe traceback could not be written ({unwritable.strerror}); {TRACEBACK_VARIABLE}=1 shows it"
    return f"{text}\nFull traceback: {log} ({TRACEBACK_VARIABLE}=1 shows it here)"


def _resume_command(path: Path, overrides: list[str], directory: Path) -> str:
    kept = [override for override in overrides if not override.startswith("output.dir=")]
    words = ["wishbone", "train", str(path), *kept, f"output.dir={directory}", "--resume"]
    return shlex.join(words)
