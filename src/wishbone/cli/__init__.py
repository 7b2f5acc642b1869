"""The command line: one file per command. Exit status 0: done, 1: the run failed, 2: the request was wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Annotated

import typer

from wishbone.cli.board import board
from wishbone.cli.chat import chat
from wishbone.cli.check import check
from wishbone.cli.compare import compare
from wishbone.cli.console import refuse, spell_what_is_missing
from wishbone.cli.doctor import doctor
from wishbone.cli.eval import evaluate
from wishbone.cli.export import export
from wishbone.cli.init import init
from wishbone.cli.plan import plan
from wishbone.cli.push import push
from wishbone.cli.report import report
from wishbone.cli.sweep import sweep
from wishbone.cli.train import train
from wishbone.cli.usage import Commands
from wishbone.run.lasting_output import OutputFailed, checked_output, lasting_output
from wishbone.version import __version__

READER_LEFT = 141
"""Exit status where the reader of a pipe is gone, as of programs that SIGPIPE ends: 128 + 13."""

app = typer.Typer(
    name="wishbone",
    cls=Commands,
    epilog="To begin: wishbone init pairs.jsonl --output run.yaml, then wishbone train run.yaml",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(
    "init",
    short_help="Recommend settings with reasons, and write them as YAML, JSON or a Python script.",
    epilog='Example: wishbone init --model Qwen/Qwen3-8B --data pairs.jsonl --gpu "RTX 4090" --output run.yaml',
)(init)
app.command(
    short_help="Check preference pairs before a run: what is wrong, why it hurts, what to do.",
    epilog="Example: wishbone check pairs.jsonl --model smollm2-135m-instruct --html pairs.html",
)(check)
app.command(
    short_help="Say before a run whether it fits and how long it takes.",
    epilog='Example: wishbone plan run.yaml model.quantization=nf4 --gpu "RTX 4090"',
)(plan)
app.command(epilog="Example: wishbone train run.yaml training.learning_rate=1e-6 --dry-run")(train)
app.command(
    short_help="Train every combination of some settings, and compare them in one table.",
    epilog="Example: wishbone sweep run.yaml training.learning_rate=5e-6,1e-5 preference.beta=0.05,0.1",
)(sweep)
app.command(
    short_help="Show runs on a local page while they train.",
    epilog="Example: wishbone board runs/one runs/two --open",
)(board)
app.command(
    short_help="Write report.html of a run and print its result.",
    epilog="Example: wishbone report runs/mine",
)(report)
app.command(
    short_help="Compare the model's answers before and after a run, side by side.",
    epilog="Example: wishbone compare runs/mine --prompt 'How long do I bake bread?'",
)(compare)
app.command(
    short_help="Talk to what a run learned.",
    epilog="Example: wishbone chat runs/mine --system 'Answer in one sentence.'",
)(chat)
app.command(
    "eval",
    short_help="Measure runs on other pairs: accuracy and margins with confidence intervals.",
    epilog="Example: wishbone eval runs/one runs/two other-pairs.jsonl",
)(evaluate)
app.command(
    short_help="Write what a run learned as a merged model, GGUF, for Ollama or vLLM.",
    epilog="Example: wishbone export runs/mine --gguf mine.gguf --quantize q8_0",
)(export)
app.command(
    short_help="Publish what a run learned on the hub, with a model card.",
    epilog="Example: wishbone push runs/mine someone/my-model --private",
)(push)
app.command(
    short_help="Show what this machine can do, and what is missing.",
    epilog="Example: wishbone doctor --model Qwen/Qwen3-8B",
)(doctor)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"wishbone {__version__}")
        raise typer.Exit


def _refuse_removed_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        refuse(["the directory in which this was started has been removed; change to another one"])
        raise typer.Exit(2) from None


@app.callback()
def _wishbone(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Preference optimization (DPO and its family) that computes each prompt once: exact, fast, light."""
    _refuse_removed_directory()
    if context.obj is not None and context.invoked_subcommand != "train":
        context.obj()


def main(release_signals: Callable[[], None] | None = None) -> None:
    """Run the command line and exit with its status.

    Args:
        release_signals: lets signals do what they did before this program began. `wishbone train` handles them itself.
    """
    spell_what_is_missing()
    with lasting_output():
        try:
            with checked_output():
                app(prog_name="wishbone", obj=release_signals, standalone_mode=True)
        except OutputFailed as failure:
            if failure.number == errno.EPIPE:  # the reader has what it wanted
                raise SystemExit(READER_LEFT) from None
            refuse([f"standard output takes no more ({failure}); print to another place, or make room there"])
            raise SystemExit(1) from None
