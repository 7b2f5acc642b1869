"""Messages for wrong words in a command: what was probably meant, in the form of all other messages.

A person writes settings as flags (`--learning-rate 1e-5`), commands in the words of other programs (`merge`, `serve`)
or a file in place of a command. Each is answered with the words that do it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from wishbone.cli.console import refuse
from wishbone.config.document import show
from wishbone.config.explain import nearest, setting_meant
from wishbone.config.former_options import SETTINGS
from wishbone.config.locate import DATA_SUFFIXES, holds_pairs
from wishbone.config.written_numbers import number_meant

_UsageError: Any = typer.BadParameter.__mro__[1]
"""What typer raises for words that a command does not take; it exports the subclass alone."""
_ARGUMENTS = "wishbone.arguments"
_SETTING = "SECTION.KEY="
"""How the metavar of an argument begins that takes settings of a run's file."""
_COMMANDS = {
    **dict.fromkeys(("run", "fit", "dpo", "finetune", "fine-tune", "start", "resume", "continue"), "train"),
    **dict.fromkeys(("merge", "convert", "save", "quantize", "gguf", "ollama"), "export"),
    **dict.fromkeys(("serve", "deploy", "vllm"), "export RUN --vllm"),
    **dict.fromkeys(("generate", "infer", "inference", "predict", "talk", "ask", "test"), "chat"),
    **dict.fromkeys(("evaluate", "score", "benchmark", "measure"), "eval"),
    **dict.fromkeys(("upload", "publish"), "push"),
    **dict.fromkeys(("validate", "lint", "inspect", "data", "clean"), "check"),
    **dict.fromkeys(("config", "configure", "new", "create", "setup", "build", "advise"), "init"),
    **dict.fromkeys(("estimate", "memory", "dry-run"), "plan"),
    **dict.fromkeys(("watch", "dashboard", "monitor", "ui", "web"), "board"),
    **dict.fromkeys(("status", "result", "results", "summary"), "report"),
    **dict.fromkeys(("env", "info", "diagnose", "system"), "doctor"),
    **dict.fromkeys(("tune", "search", "grid", "hpo"), "sweep"),
}
"""Commands by the words that other programs use."""
_OPTIONS = {
    **dict.fromkeys(("lr",), "learning_rate"),
    **dict.fromkeys(("dataset", "dataset_name", "train", "file", "input", "path"), "data"),
    **dict.fromkeys(("base_model", "model_name", "model_name_or_path", "base"), "model"),
    **dict.fromkeys(("out", "output_dir", "dir", "o", "save"), "output"),
    **dict.fromkeys(("quantization", "quant", "bits", "outtype", "type"), "quantize"),
    **dict.fromkeys(("max_tokens", "length", "max_length"), "max_new_tokens"),
    **dict.fromkeys(("system_prompt",), "system"),
    **dict.fromkeys(("to", "merge", "hf"), "merged"),
    **dict.fromkeys(("lora", "adapter", "lora_gguf"), "adapter_gguf"),
    **dict.fromkeys(("device", "gpu_name"), "gpu"),
    **dict.fromkeys(("licence",), "license"),
    **dict.fromkeys(("question", "text", "q", "p"), "prompt"),
    **dict.fromkeys(("force", "f", "y", "yes"), "overwrite"),
}
"""Options by the words that other programs use."""
_REASONS = {
    "Input should be a valid integer, unable to parse string as an integer": "it takes a whole number",
    "Input should be a valid number, unable to parse string as a number": "it takes a number",
    "Input should be ": "it takes a number ",
}
"""What a library says of a value, and what is said instead."""
_FILES = ("config", "config_file", "config_path", "file", "yaml", "c")
"""Options by which other programs take their file of settings."""


class Commands(TyperGroup):
    """The commands, and what is said about words that are none; `help` and `version` answer as the flags do."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any | None = None, **extra: Any) -> Any:
        """Read the options before the command."""
        if not args:
            return super().make_context(info_name, args, parent, **extra)
        with _in_words():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _in_words():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first word names."""
        word, *rest = args
        ctx.meta[_ARGUMENTS] = args
        if word in self.commands:
            asks = rest == ["help"] and not os.path.lexists("help")
            return super().resolve_command(ctx, [word, "--help"] if asks else args)
        if word == "help" and rest[:1] and rest[0] in self.commands:
            return super().resolve_command(ctx, [rest[0], "--help"])
        if word in ("help", "version"):
            super().make_context(ctx.info_name, [f"--{word}"])  # prints it and exits
        refuse([f"there is no command {show(word)}; {_command_meant(args, self.commands)}"])
        raise typer.Exit(2)


def _command_meant(args: Sequence[str], commands: Collection[str]) -> str:
    """The command that somebody means by words that begin with none."""
    word, *rest = args
    path = Path(word)
    if word.lower().endswith((".yaml", ".yml", ".json")) and not (path.is_file() and holds_pairs(path)):
        return f"did you mean `{shlex.join(['wishbone', 'train', *args])}`?"
    if word.lower().endswith(DATA_SUFFIXES):
        return f"did you mean `{shlex.join(['wishbone', 'init', word, '--output', 'run.yaml'])}`?"
    if (path / "config.yaml").is_file():
        return f"did you mean `{shlex.join(['wishbone', 'report', word])}`?"
    meant = _COMMANDS.get(word.lower()) or nearest(word, commands)
    if meant is None:
        return f"the commands are {', '.join(commands)}"
    if "RUN" in meant:
        return f"did you mean `wishbone {meant.replace('RUN', shlex.quote(rest[0]) if rest else 'RUN')}`?"
    return f"did you mean `{shlex.join(['wishbone', meant, *rest])}`?"


@contextmanager
def _in_words() -> Iterator[None]:
    """Context in which wrong words end the program with exit status 2 and a message of the same form as others."""
    try:
        yield
    except _UsageError as error:
        refuse([_sentence(error)])
        raise typer.Exit(2) from error


def _sentence(error: Any) -> str:
    """What is wrong with the words of a command, and what to write."""
    kind, context = type(error).__name__, error.ctx
    if context is None:
        option = getattr(error, "option_name", "")
        return f"{option} needs a value behind it" if option and "requires" in error.message else str(error.message)
    name = context.command_path.partition(" ")[2]
    help_ = f"`{context.command_path} --help` says what it takes"
    if kind == "BadOptionUsage" and "requires" in error.message:
        return f"{name}: {error.option_name} needs a value behind it; {_example(context) or help_}"
    if kind == "NoSuchOption":
        return f"{name or context.command_path} has no option {error.option_name}; {_option_meant(error) or help_}"
    if kind == "MissingParameter":
        return f"{name}: {_missing(error)}; {_example(context) or help_}"
    if kind == "BadParameter" and error.param is None and error.param_hint is None:
        return str(error.message)
    text = error.format_message().rstrip(".")
    for libraries, ours in _REASONS.items():
        text = text.replace(libraries, ours)
    for word, number in (("integer", "whole number"), ("float", "number")):  # as typer 0.20 says it
        text = re.sub(rf"'[^']*' is not a valid {word}( range)?", f"it takes a {number}", text)
    if kind == "BadParameter" and (given := _given(error)) is not None:
        text = _value_refused(text, given)
    if found := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", text, re.DOTALL):
        text = f"it takes no further word, and {show(found[1])} was given"
    return f"{name or context.command_path}: {text[0].lower()}{text[1:]}; {_example(context) or help_}"


def _given(error: Any) -> str | None:
    """The value of the option that an error is about, as it was written."""
    words: list[str] = error.ctx.meta.get(_ARGUMENTS, [])
    options = error.param.opts if error.param is not None else ()
    for word, value in pairwise([*words, ""]):
        option, equals, text = word.partition("=")
        if option in options:
            return text if equals else value
    return None


def _value_refused(text: str, given: str) -> str:
    """A library's sentence on a value, with the value and the number that was meant."""
    where, _, rule = text.partition(": ")
    number = number_meant(given, whole="whole" in rule or "integer" in rule)
    write = f"Write {number}. " if number else ""
    if rule.startswith("it takes "):
        return f"{where}: {show(given)} is not accepted. {write}I{rule[1:]}"
    return f"{text}. {write}".rstrip(". ")


def _missing(error: Any) -> str:
    """Which arguments a command needs, and what was given of them."""
    words = error.ctx.meta.get(_ARGUMENTS, [])[1:]
    given = [word for word in words if not word.startswith("-")]
    needs = [str(param.metavar) for param in error.ctx.command.params if _is_argument(param) and param.required]
    said = f"only {' '.join(map(show, given))} was given" if given and len(needs) > 1 else "nothing was given"
    return f"it needs {' and '.join(needs)}, and {said}"


def _example(context: Any) -> str:
    """The example of a command, as the end of a sentence."""
    text = getattr(context.command, "epilog", None) or ""
    return f"for example `{text.removeprefix('Example: ')}`" if text else ""


def _option_meant(error: Any) -> str | None:
    """What somebody means by an option that a command does not have."""
    context = error.ctx
    command, words = context.command, context.meta.get(_ARGUMENTS, [])
    own = {option for param in command.params for option in (*param.opts, *param.secondary_opts) if option[:1] == "-"}
    if any(_is_argument(param) and str(param.metavar).startswith(_SETTING) for param in command.params):
        found = _as_settings(words, own)
        if found is not None:
            return found
    word = error.option_name.lstrip("-").replace("-", "_").lower()
    known = {option.lstrip("-").replace("-", "_"): option for option in sorted(own)}
    meant = known.get(_OPTIONS.get(word, "")) or nearest(word, known)
    return None if meant is None else f"did you mean {known.get(meant, meant)}?"


def _as_settings(words: Sequence[str], own: set[str]) -> str | None:
    """The command with settings where flags stand that the command does not have; None where one means no setting."""
    name, *rest = words
    kept: list[str] = [name]
    settings: list[str] = []
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if not flag.startswith("-") or flag in own or len(flag.lstrip("-")) == 0:
            (settings if equals and not flag.startswith("-") else kept).append(word)
            continue
        key = flag.lstrip("-")
        setting = setting_meant(key, exactly=True)
        if setting is None and nearest(key, [option.lstrip("-") for option in own]):
            return None
        setting = setting or setting_meant(key)
        has_value = equals or (rest and not rest[0].startswith("--"))
        value = value if equals else rest.pop(0) if has_value else "true"
        if key.replace("-", "_").lower() in _FILES:
            kept.insert(1, value)
        elif (former := SETTINGS.get(key.replace("-", "_").lower())) and setting_meant(key, exactly=True) is None:
            return f"as a setting, without dashes: {former}"
        elif setting is None:
            return None
        else:
            settings.append(f"{setting}={value}")
    command = shlex.join(["wishbone", *kept, *settings])
    rule = "settings are written without dashes, behind the file" if settings else "the file is written without it"
    return f"{rule}: `{command}`"


def _is_argument(param: Any) -> bool:
    return str(param.param_type_name) == "argument"
