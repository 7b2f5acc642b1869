"""`wishbone train`: one run from a configuration file; with `--dry-run` only its plan."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import Annotated

import typer

from wishbone.cli.console import plain, say, screen
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.outcome import Attempt
from wishbone.cli.request import requested
from wishbone.config.cautions import cautions
from wishbone.config.load import load_config
from wishbone.config.run_directory import choose_run_directory, claimed_run_directory
from wishbone.config.schema import RunConfig
from wishbone.process_memory import keep_host_memory, let_device_memory_grow
from wishbone.run.lasting_output import lasting_output
from wishbone.run.preflight import check_access
from wishbone.run.processes import is_first_process
from wishbone.run.stop_signals import StopSignals

NEXT = (
    ("report {run}", "curves, and what to look at"),
    ("compare {run}", "answers before and after"),
    ("chat {run}", "talk to it"),
    ("export {run} --gguf model.gguf", "for llama.cpp and Ollama; also --merged, --vllm"),
)
"""What to do with a run that is done."""


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
    attempt = Attempt(config_path, overrides or [])
    with lasting_output(), attempt.outcome(), StopSignals(_say_stopping, attempt.left) as signals, requested():
        config = _configured(attempt)
        planned = _placed(config, choose_run_directory(config, name=config_path.stem, resume=resume))
        check_access(planned, writes=not dry_run)
        if dry_run:
            _print_plan(planned)
        elif is_first_process():
            with claimed_run_directory(config, name=config_path.stem, resume=resume) as directory:
                attempt.directory = directory
                with attempt.outcome():
                    _run(_placed(config, directory), directory, resume, signals)
        else:
            _run(config, None, resume, signals)


def _configured(attempt: Attempt) -> RunConfig:
    """Read the configuration and print cautions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        config = load_config(attempt.config, attempt.overrides)
    for caution in cautions(config):
        say(caution, marker="note: ", style="bold yellow", error=True)
    return config


def _placed(config: RunConfig, directory: Path) -> RunConfig:
    return config.model_copy(update={"output": config.output.model_copy(update={"dir": str(directory)})})


def _print_plan(config: RunConfig) -> None:
    settle_libraries()
    from wishbone.cli.dry_run import print_plan

    print_plan(config)


def _run(config: RunConfig, directory: Path | None, resume: bool, signals: StopSignals) -> None:
    settle_libraries()
    keep_host_memory()
    let_device_memory_grow()
    from wishbone.run.run import train as run

    done = run(config, resume=resume, run_dir=directory, signals=signals)
    if directory is not None:
        say(str(done), marker="done: ", style="bold green")
        _print_next(done)


def _print_next(run: Path) -> None:
    """Commands that use the result, each on a line of its own, whole, for copying."""
    name = shlex.quote(str(run))
    say("", marker="next:", style="bold", error=True)
    for words, what in NEXT:
        screen(error=True).print(
            plain(f"  wishbone {words.format(run=name)}") + plain(f"  # {what}", "dim"), soft_wrap=True
        )


def _say_stopping(text: str) -> None:
    """Print what a signal does; of several processes the first one prints."""
    if is_first_process():
        say(text, marker="stopping: ", style="bold yellow", error=True)
