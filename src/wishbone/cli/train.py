"""`wishbone train`: one run from a configuration file; with `--dry-run` only its plan."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from operator import ne
from pathlib import Path
from typing import Annotated, Any

import typer

from wishbone.cli.answers import print_recorded, sides
from wishbone.cli.console import plain, say, screen
from wishbone.cli.libraries import keep_bars_out_of_pipes, settle_libraries
from wishbone.cli.outcome import Attempt
from wishbone.cli.request import requested
from wishbone.cli.result import print_changes, result_data
from wishbone.config.cautions import cautions
from wishbone.config.load import load_config
from wishbone.config.run_directory import choose_run_directory, claimed_run_directory
from wishbone.config.schema import RunConfig
from wishbone.errors import counted
from wishbone.paths import user_path
from wishbone.phases import phase
from wishbone.process_memory import keep_host_memory, let_device_memory_grow
from wishbone.report.run_directory import read_run
from wishbone.run.lasting_output import lasting_output
from wishbone.run.launch import choose_one_gpu, gpus_asked_for, is_launched, launch
from wishbone.run.phase_display import phases_shown
from wishbone.run.preflight import check_access
from wishbone.run.processes import is_first_process, refuse_to_train_apart
from wishbone.run.stop_signals import StopSignals
from wishbone.strict_json import without_nan

NEXT = (
    ("report {run}", "curves, and what to look at"),
    ("chat {run}", "talk to it"),
    ("compare {run}", "more answers before and after"),
    ("export {run} --gguf model.gguf", "for llama.cpp and Ollama; also --merged, --vllm"),
    ("push {run} OWNER/NAME", "publish it with a model card"),
)
"""What to do with a run that is done."""
WITH_IMAGES = ("export {run} --merged DIR", "the whole model with its processor; also --vllm")
"""In the place of `--gguf`, which a run on images refuses."""


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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output, and nothing else there.")
    ] = False,
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", metavar="N|all", help="GPUs that share the work. The result is that of one."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", metavar="N", min=1, help="The same with processes; on a machine without a GPU."),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Machines that run this command.")] = 1,
    meet_at: Annotated[
        str | None, typer.Option("--meet-at", metavar="HOST[:PORT]", help="One of these machines, the same on all.")
    ] = None,
) -> None:
    """Train on preference pairs."""
    keep_bars_out_of_pipes()  # the checks before a run import datasets
    if not (dry_run or is_launched()) and (gpus or processes or nodes > 1):
        with lasting_output(), requested():
            number = gpus_asked_for(gpus) if gpus else processes or gpus_asked_for("all")
            if number * nodes > 1:
                options = [*(["--resume"] * resume), *(["--json"] * as_json)]
                _launch(config_path, overrides or [], options, number, nodes, meet_at)
    attempt = Attempt(config_path, overrides or [])
    if dry_run and (gpus or processes or nodes > 1):
        raise typer.BadParameter("a dry run is of one process; `wishbone plan --gpus N` plans several")
    if dry_run and as_json:
        raise typer.BadParameter("a dry run has no result; `wishbone plan --json` prints the plan")
    # What a run prints may be lost; a plan is printed, or it is not there.
    lasting: AbstractContextManager[None] = nullcontext() if dry_run else lasting_output()
    with lasting, attempt.outcome(), StopSignals(_say_stopping, attempt.left) as signals, requested():
        if not dry_run:
            refuse_to_train_apart()
        config = _configured(attempt)
        planned = _planned(config, config_path.stem, resume=resume)
        check_access(planned, writes=not dry_run)
        if dry_run:
            _print_plan(planned)
        elif is_first_process():
            with claimed_run_directory(config, name=config_path.stem, resume=resume) as directory:
                attempt.directory = directory
                with attempt.outcome():
                    _run(_placed(config, directory), directory, resume, signals, as_json=as_json)
        else:
            _run(config, None, resume, signals, as_json=as_json)


def _launch(
    config_path: Path, overrides: list[str], options: list[str], processes: int, nodes: int, meet_at: str | None
) -> None:
    """Refuse once what all processes would refuse; then start them and end as they do."""
    config = _read(config_path, overrides)
    check_access(_placed(config, choose_run_directory(config, name=config_path.stem, resume="--resume" in options)))
    command = ["train", str(config_path), *overrides, *options]
    if nodes > 1 and meet_at is not None:
        say(f"waits for {nodes} machines at {meet_at}, 15 minutes at most", marker="nodes: ", style="bold", error=True)
    with Attempt(config_path, overrides).outcome():
        raise typer.Exit(launch(command, processes=processes, nodes=nodes, meet_at=meet_at))


def _read(config_path: Path, overrides: list[str]) -> RunConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_config(config_path, overrides)


def _configured(attempt: Attempt) -> RunConfig:
    """Read the configuration and print cautions, in the first of several processes."""
    config = _read(attempt.config, attempt.overrides)
    for caution in cautions(config) if is_first_process() else ():
        say(caution, marker="note: ", style="bold yellow", error=True)
    return config


def _planned(config: RunConfig, name: str, *, resume: bool) -> RunConfig:
    """The settings with the run's directory, which only the first process looks into: others may find it half begun."""
    if is_first_process():
        return _placed(config, choose_run_directory(config, name=name, resume=resume))
    given = config.output.dir
    return config if given is None else _placed(config, user_path(given).absolute())


def _placed(config: RunConfig, directory: Path) -> RunConfig:
    return config.model_copy(update={"output": config.output.model_copy(update={"dir": str(directory)})})


def _print_plan(config: RunConfig) -> None:
    settle_libraries()
    from wishbone.cli.dry_run import print_plan

    print_plan(config)


def _run(
    config: RunConfig, directory: Path | None, resume: bool, signals: StopSignals, *, as_json: bool = False
) -> None:
    settle_libraries()
    keep_host_memory()
    let_device_memory_grow()
    with ExitStack() as opened:
        if directory is not None:
            if screen(error=True).is_terminal:
                watch = f"wishbone board {shlex.quote(str(directory.parent))} shows it in a browser"
                say(f"{directory}; {watch}", marker="run: ", style="bold", error=True)
            opened.enter_context(phases_shown(screen(error=True)))
        with phase("imports", note="torch, transformers, trl"):
            if (gpus := choose_one_gpu()) > 1 and not is_launched():
                say(f"the run uses one of {gpus} GPUs; --gpus all uses all of them", marker="note: ", error=True)
            from wishbone.run.run import train as run

        done = run(config, resume=resume, run_dir=directory, signals=signals)
    if directory is None:
        return
    record = read_run(done)
    if as_json:
        typer.echo(json.dumps(without_nan(result_data(record)), indent=2))
        return
    print_changes(record, error=True)
    _print_an_answer(record.answers, heldout=bool(record.summary.get("pairs", {}).get("heldout")))
    say(str(done), marker="done: ", style="bold green")
    _print_next(done, images=bool(record.summary.get("images")))


def _print_an_answer(answers: Sequence[Mapping[str, Any]], *, heldout: bool) -> None:
    """The first answer that changed, before and after; nothing where there are none."""
    changed = next((answer for answer in answers if ne(*sides(answer))), None)
    if changed is not None:
        print_recorded(1, changed, error=True)
    elif answers:
        asked = f"{counted(len(answers), 'prompt')} of the {'held-out' if heldout else 'training'} pairs"
        say(f"The greedy answers to {asked} are the same as before.", error=True)


def _print_next(run: Path, *, images: bool) -> None:
    """Commands that use the result, each on a line of its own, whole, for copying."""
    name = shlex.quote(str(run))
    say("", marker="next:", style="bold", error=True)
    for words, what in (WITH_IMAGES if images and "--gguf" in step[0] else step for step in NEXT):
        screen(error=True).print(
            plain(f"  wishbone {words.format(run=name)}") + plain(f"  # {what}", "dim"), soft_wrap=True
        )


def _say_stopping(text: str) -> None:
    """Print what a signal does; of several processes the first one prints."""
    if is_first_process():
        say(text, marker="stopping: ", style="bold yellow", error=True)
