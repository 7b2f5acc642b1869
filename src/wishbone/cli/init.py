"""`wishbone init`: recommended settings with reasons, as YAML, JSON or a Python script.

On a terminal and without flags it asks questions. Explanations go to standard error, the file to standard output or to
`--output`, so a pipe gets only the file. What is not told is found out: data on this machine are opened and their
tokens counted, the GPU is this machine's, and the file is planned here before it is written.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.table import Table

from wishbone.atomic_file import whole_file
from wishbone.cli.console import plain, say, screen
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.preparation import COUNTED, Prepared, prepare
from wishbone.cli.request import requested
from wishbone.config.document import plain_value, show, show_path
from wishbone.config.emit import yaml_flow
from wishbone.config.explain import nearest
from wishbone.config.json_schema import editor_line
from wishbone.config.schema import EMBEDDED_MODEL
from wishbone.config.targets import AS_ASKED, Format, write
from wishbone.errors import RequestError
from wishbone.paths import unwritten, user_path
from wishbone.planning import hardware
from wishbone.planning.advisor import Advice, advise
from wishbone.planning.gpus import assumed_gpu, find_gpu
from wishbone.planning.situation import NO_GPU, SYMPTOMS, Situation, read_situation

FORMATS: tuple[Format, ...] = get_args(Format)
NUMBERS = ("parameters_billion", "gpu_memory_gib", "gpus", "pairs", "prompt_tokens", "completion_tokens",
           "longest_tokens", "learning_rate")  # fmt: skip
COMMANDS = {"wishbone": "wishbone train", "trl": "trl dpo --config"}
"""What trains with a file that is no script, by target; Unsloth has scripts only."""
OF_SCRIPTS = {"script.gradient_checkpointing": "gradient checkpointing", "script.precompute_reference": "reference"}


SUFFIXES = {"yml": "yaml", "py": "python"}
"""Formats by the ends of their files' names."""
WITHOUT_GPU = (NO_GPU, "cpu", "cpu only", "no", "no gpu", "without")
"""What says that there is no GPU."""


STANDARD_OUTPUT = "-"
"""The file that is none, as other programs write it."""


LEFT_OUT = {
    "model": f"{EMBEDDED_MODEL} (built in), a model id on the hub or a directory; left out: the built-in one.",
    "gpu": "Name of the GPU, such as RTX 4090, or its memory, such as 24GB, or none; left out: that of this machine.",
    "output": "File to write; left out: standard output.",
}
"""What the command does where an option is left out, where the planner page does something else."""


def _flag(name: str, **more: Any) -> Any:
    described = LEFT_OUT.get(name) or str(Situation.model_fields[name].description).replace("; null: ", "; left out: ")
    return typer.Option(help=described, show_default=False, **more)


def build(
    model: Annotated[str | None, _flag("model")] = None,
    parameters_billion: Annotated[str | None, _flag("parameters_billion", metavar="NUMBER")] = None,
    gpu: Annotated[str | None, _flag("gpu")] = None,
    gpu_memory_gib: Annotated[str | None, _flag("gpu_memory_gib", metavar="NUMBER")] = None,
    gpus: Annotated[str | None, _flag("gpus", metavar="NUMBER")] = None,
    method: Annotated[str | None, _flag("method")] = None,
    reference: Annotated[str | None, _flag("reference")] = None,
    reference_model: Annotated[str | None, _flag("reference_model")] = None,
    data: Annotated[str | None, _flag("data")] = None,
    pairs: Annotated[str | None, _flag("pairs", metavar="NUMBER")] = None,
    prompt_tokens: Annotated[str | None, _flag("prompt_tokens", metavar="NUMBER")] = None,
    completion_tokens: Annotated[str | None, _flag("completion_tokens", metavar="NUMBER")] = None,
    longest_tokens: Annotated[str | None, _flag("longest_tokens", metavar="NUMBER")] = None,
    noisy_labels: Annotated[bool, _flag("noisy_labels")] = False,
    learning_rate: Annotated[str | None, _flag("learning_rate", metavar="NUMBER")] = None,
    symptom: Annotated[
        list[str] | None,
        typer.Option(help=f"What went wrong in an earlier run; may be repeated: {', '.join(SYMPTOMS)}."),
    ] = None,
    target: Annotated[str | None, _flag("target")] = None,
    output: Annotated[str | None, _flag("output")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help=f"{', '.join(FORMATS)}; yaml if not given.", show_default=False)
    ] = None,
) -> None:
    """Recommend settings for a model, a machine and data, with reasons, and write them as YAML, JSON or Python."""
    given = dict(locals())
    with requested():
        situation, chosen = _checked(_answers(given), form or "yaml")
        _say_assumption(situation)
        advice = advise(situation)
        text = write(situation.target, chosen, advice.outcome)
        _print_advice(advice, scripted=chosen == "python" or situation.target != "wishbone")
        _hand_over(situation, chosen, text)


def init(*, as_json: bool = False, **flags: Any) -> None:
    """`build`, after missing answers are read from the data or, without flags on a terminal, asked for."""
    named = flags.pop("named_data")
    if named is not None and flags["data"] is not None:
        with requested():
            raise RequestError(f"--data: {show(flags['data'])} and {show(named)} are both given; give one of them")
    flags["data"] = flags["data"] or named
    if not any(flags.values()) and sys.stdin.isatty() and sys.stderr.isatty():
        flags |= _ask()
    settle_libraries()
    with requested():
        answers = _answers(flags)
        if answers.get("data") and "model" not in answers:
            answers["model"] = EMBEDDED_MODEL
        for_here = not answers.keys() & {"gpu", "gpu_memory_gib", "gpus"}
        if for_here:
            answers["gpu"] = _gpu_here()
        situation, chosen = _checked(answers, flags.get("form") or "yaml")
        if situation.output is not None:
            _refuse_taken(user_path(situation.output))
        _say_assumption(situation)
        with screen(error=True).status("opening the data"):
            prepared = prepare(situation, {name for name in answers if name in COUNTED}, for_here=for_here)
        for note in prepared.notes:
            say(note, marker="note: ", style="bold yellow", error=True)
        situation, advice = prepared.situation, prepared.advice
        text = write(situation.target, chosen, advice.outcome)
        if chosen == "yaml" and situation.target == "wishbone" and situation.output is not None:
            text = editor_line() + text
        if as_json:
            if situation.output is not None:
                _write_new(situation.output, text)
            typer.echo(json.dumps(_data(prepared, text, chosen), indent=2))
            return
        _print_advice(advice, scripted=chosen == "python" or situation.target != "wishbone")
        for line in prepared.found:
            say(line, marker="found: ", style="bold", error=True)
        _hand_over(situation, chosen, text)


_BUILD = signature(build, eval_str=True)
init.__doc__ = build.__doc__
init.__signature__ = _BUILD.replace(  # type: ignore[attr-defined]  # typer reads it
    parameters=[
        Parameter(
            "named_data",
            Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[
                str | None, typer.Argument(metavar="DATA", help="The same as --data.", show_default=False)
            ],
        ),
        *_BUILD.parameters.values(),
        Parameter(
            "as_json",
            Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option("--json", help="Print settings, reasons and the file as JSON.")],
        ),
    ]
)


def _answers(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Answers by field name from flags."""
    given = {name: value for name, value in flags.items() if name in Situation.model_fields}
    answers = {name: value for name, value in given.items() if value is not None and value is not False}
    if answers.get("output") == STANDARD_OUTPUT:
        del answers["output"]
    answers |= {name: plain_value(answers[name]) for name in NUMBERS if name in answers}
    answers |= {"gpu": NO_GPU} if answers.get("gpu", "").lower() in WITHOUT_GPU else {}
    return answers | ({"symptoms": flags["symptom"]} if flags.get("symptom") else {})


def _say_assumption(situation: Situation) -> None:
    """Print which GPU a name was taken for, where it may be several."""
    assumed = None if situation.gpu.lower() == NO_GPU else assumed_gpu(situation.gpu)
    if assumed is not None:
        say(assumed, marker="note: ", style="bold yellow", error=True)


def _hand_over(situation: Situation, form: Format, text: str) -> None:
    """Write the file, or print it."""
    if situation.output is None:
        sys.stdout.write(text)
        return
    _write_new(situation.output, text)
    say(_next(situation, form), marker="written: ", style="bold green", error=True)


def _data(prepared: Prepared, text: str, form: Format) -> dict[str, Any]:
    """What was advised, as data for other programs."""
    situation, advice = prepared.situation, prepared.advice
    return {
        "settings": {name: value for name, value in advice.settings.items() if not name.startswith("script.")},
        "reasons": [
            {"settings": list(rule.set), "reason": rule.reason, "source": rule.source}
            for rule in advice.applied
            if rule.kind == "setting"
        ],
        "warnings": [rule.reason for rule in advice.warnings],
        "situation": situation.model_dump(),
        "fits": prepared.fits,
        "found": prepared.found,
        "notes": prepared.notes,
        "format": form,
        "written": situation.output,
        "text": text,
    }


def _checked(answers: dict[str, Any], form: str) -> tuple[Situation, Format]:
    """The situation and the format; raises all problems of both."""
    problems = []
    chosen = next((known for known in FORMATS if known == form), None)
    if chosen is None:
        meant = SUFFIXES.get(form) or nearest(form, FORMATS)
        close = f"Did you mean {meant}? " if meant else ""
        problems.append(f"--format: {show(form)} is not accepted. {close}It takes one of {', '.join(FORMATS)}")
    if answers.get("gpu", NO_GPU).lower() != NO_GPU:
        try:
            find_gpu(answers["gpu"])
        except RequestError as error:
            problems += [f"--gpu: {problem}" for problem in error.problems]
    try:
        situation = read_situation(answers)
    except RequestError as error:
        raise RequestError([*error.problems, *problems]) from error
    if problems or chosen is None:
        raise RequestError(problems)
    return situation, chosen


def _print_advice(advice: Advice, *, scripted: bool) -> None:
    """Print the settings with their reasons, and the warnings."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, fold in (("Setting", False), ("Value", False), ("Why", True)):
        table.add_column(name, no_wrap=not fold, overflow="fold", header_style="bold", max_width=None if fold else 42)
    deciding = {name: rule for rule in advice.applied for name in rule.set}
    for rule in advice.applied:
        names = [name for name in rule.set if deciding[name] is rule and _shown(name, scripted=scripted)]
        reason = "" if rule.reason == AS_ASKED else rule.reason
        for name in names:
            value = advice.settings[name]
            table.add_row(plain(OF_SCRIPTS.get(name, name)), plain(yaml_flow(value)), plain(reason))
            reason = ""
    console = screen(error=True)
    console.print(table)
    for rule in advice.warnings:
        say(rule.reason, marker="note: ", style="bold yellow", error=True)


def _shown(name: str, *, scripted: bool) -> bool:
    return name in OF_SCRIPTS if name.startswith("script.") and scripted else not name.startswith("script.")


def _refuse_taken(path: Path) -> None:
    """Refuse a place that is taken, or is in no directory.

    Raises:
        RequestError: with what to do.
    """
    if path.is_dir():
        raise RequestError(f"--output: {show_path(path)} is a directory; name a file in it, such as run.yaml")
    if os.path.lexists(path):
        raise RequestError(f"--output: {show_path(path)} exists; name another file, or delete it if it is not needed")
    if not path.parent.is_dir():
        raise RequestError(
            f"--output: {show_path(path)} cannot be written, because {show_path(path.parent)} is not a directory; make "
            "it, or name another place"
        )


def _write_new(name: str, text: str) -> None:
    path = user_path(name)
    _refuse_taken(path)
    try:
        with whole_file(path, new=True) as file:
            file.write(text)
    except OSError as error:
        raise RequestError(f"--output: {unwritten(path, error)}") from error


def _next(situation: Situation, form: Format) -> str:
    """The file, and the command that trains with it."""
    file = str(situation.output)
    command = "python" if form == "python" else COMMANDS.get(situation.target)
    return f"{file}; to train: {command} {shlex.quote(file)}" if command else file


def _ask() -> dict[str, Any]:
    """Answers to a few questions, as flags."""
    say("Enter accepts the value in brackets.", error=True)
    answers: dict[str, Any] = {
        "model": _question("Model: a name, a hub id or a directory", "model", EMBEDDED_MODEL),
        "data": _question("Preference pairs: a file, a directory or a data set id on the hub", "data"),
        "gpu": _question("GPU, or none", "gpu", _gpu_here()),
        "method": _question("Train an adapter (lora) or every weight (full)", "method", "lora"),
    }
    say(f"What went wrong before, if anything: {', '.join(SYMPTOMS)}", error=True)
    answers["symptom"] = _question("Symptoms, with commas between them", "symptoms", "", read=_words)
    answers["target"] = _question("Trainer: wishbone, trl or unsloth", "target", "wishbone")
    answers["form"] = _question("Format: yaml, json or python", "format", "yaml")
    file = typer.prompt("File to write (empty: print it)", default="", show_default=False, err=True)
    return answers | {"output": file or None}


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _question(text: str, field: str, default: str | None = None, *, read: Callable[[str], Any] = str) -> Any:
    """Ask until an answer is accepted, and return it."""

    def checked(answer: str) -> Any:
        value = read(answer)
        answers = {"model": "m", "data": "d", **({field: value} if field != "format" else {})}
        try:
            _checked(answers, answer if field == "format" else "yaml")
        except RequestError as error:
            raise typer.BadParameter("; ".join(error.problems)) from error
        return value

    return typer.prompt(text, default=default, show_default=bool(default), value_proc=checked, err=True)


def _gpu_here() -> str:
    """The GPU of this machine if it is known, otherwise none."""
    if not hardware.has_nvidia_driver():
        return NO_GPU
    for accelerator in hardware.read_accelerators():
        try:
            return find_gpu(accelerator.name, accelerator.memory / 2**30).name
        except RequestError:
            continue
    return NO_GPU
