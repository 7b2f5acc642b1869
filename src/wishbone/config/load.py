"""From a YAML file and overrides to a checked `RunConfig`, and back.

All problems are reported at once, each with its place, the value, the rule and the remedy. Rules that involve several
fields are checked on the fields that are valid by themselves, so one typo does not hide a conflict elsewhere.

Relative paths (`model.name` if it is a path, `data.train`, `data.eval`, `output.dir`) are looked up in the current
directory first, then beside the YAML file. A path that is found becomes absolute, so the configuration that is kept
with a run can be used from anywhere.
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from wishbone.config.cautions import cautions
from wishbone.config.document import FLOAT, MAX_CHARACTERS, plain_value, read_document, show, show_path
from wishbone.config.explain import Where, explain, nearest, sections, setting_meant
from wishbone.config.locate import DATA_SUFFIXES, holds_pairs, locate_paths
from wishbone.config.schema import EMBEDDED_MODEL, RunConfig
from wishbone.errors import RequestError
from wishbone.paths import of_windows, user_path

_SMALLEST = f"model: {{name: {EMBEDDED_MODEL}}} and data: {{train: pairs.jsonl}}"
_SETTINGS_SUFFIXES = (".yaml", ".yml")
_REQUIRED = {("model", "name"), ("data", "train")}


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or `plain_value` would read as something else."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Double quotes for unusual line breaks, which are escaped there; YAML's other styles would lose them."""
    style = '"' if any(letter in text for letter in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{FLOAT.pattern})\Z"), list("-+.0123456789"))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check the configuration of a run.

    Args:
        path: YAML file in UTF-8, at most 256 Ki characters.
        overrides: `section.key=value` each; they replace values of the file, in order. A value is read as in YAML.

    Returns:
        The configuration, found paths made absolute.

    Warns:
        UserWarning: for each setting that is allowed but probably not intended (`wishbone.config.cautions`).

    Raises:
        RequestError: with every problem of the file and the overrides.
    """
    path = user_path(path)
    config, problems, where = _parse(read_text(path), overrides)
    config, lost = locate_paths(config, path.parent, where)
    if problems or lost:
        raise RequestError([*problems, *lost])
    for caution in cautions(config):
        warnings.warn(caution, stacklevel=2)
    return config


def parse_config(text: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Check a configuration given as YAML text, as `load_config` does, without touching any file.

    Raises:
        RequestError: with every problem of the text and the overrides.
    """
    config, problems, _ = _parse(text, overrides)
    if problems:
        raise RequestError(problems)
    return config


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML text with every field; `parse_config` reads the same values back."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _parse(text: str, overrides: Sequence[str]) -> tuple[RunConfig, list[str], Where]:
    assigned, problems = _assignments(overrides)
    try:
        document = read_document(text)
    except RequestError as error:
        raise RequestError([*error.problems, *problems]) from error
    if document.value is None and not assigned:
        raise RequestError([f"the configuration is empty; the smallest one is {_SMALLEST}", *problems])
    values = {} if document.value is None else document.value
    if not isinstance(values, dict):
        what = "a list" if isinstance(values, list) else show(values)
        raise RequestError(
            [f"the configuration is {what}, but must be sections of keys, such as {_SMALLEST}", *problems]
        )
    for (section, *key), (value, _) in assigned.items():
        values[section] = {} if values.get(section) is None else values[section]
        if not key:
            values[section] = value
        elif isinstance(values[section], dict):
            values[section][key[0]] = value

    def where(path: tuple[str, ...]) -> str:
        given = next((text for key, (_, text) in assigned.items() if key[: len(path)] == path), None)
        if given is not None:
            return f" (override {show(given)})"
        return f" (line {document.lines[path]})" if path in document.lines else ""

    config, broken = _check(values, where)
    return config, [*document.problems, *problems, *broken], where


def _check(values: dict[str, Any], where: Where) -> tuple[RunConfig, list[str]]:
    """Validate; reset wrong fields to their defaults and validate again, until all problems are found."""
    values = {**values, **{name: values[name] if values.get(name) is not None else {} for name in sections()}}
    problems: list[str] = []
    broken: set[tuple[str, ...]] = set()
    while True:
        try:
            config = RunConfig.model_validate(values)
        except ValidationError as error:
            sentences, fields = explain(error, where, broken)
            problems += sentences
            broken |= fields
            values = {name: section for name, section in values.items() if (name,) not in fields}
            for name in sections():
                kept = {key: value for key, value in values.get(name, {}).items() if (name, key) not in fields}
                values[name] = kept | {key: "placeholder" for owner, key in fields & _REQUIRED if owner == name}
        else:
            return config, problems


def _assignments(overrides: Sequence[str]) -> tuple[dict[tuple[str, ...], tuple[Any, str]], list[str]]:
    """Value and text of each override by its path; the last override of a path counts."""
    assigned: dict[tuple[str, ...], tuple[Any, str]] = {}
    problems = []
    waiting = list(overrides)
    while waiting:
        override = waiting.pop(0)
        name, equals, text = override.partition("=")
        path = tuple(part.strip() for part in name.split("."))
        if not equals or not all(path) or len(path) > 2:
            problems.append(f"override {show(override)}: {_written(override, waiting)}")
            continue
        try:
            value = (
                read_document(text).value if text.lstrip()[:1] in {"[", "{", '"', "'"} else plain_value(text.strip())
            )
        except RequestError as error:
            problems.append(f"override {show(override)}: {error}; quote text that begins with a bracket")
            continue
        assigned[path] = (value, override)
    return assigned, problems


def _written(override: str, following: list[str]) -> str:
    """How to write a word that is no override; takes those from `following` that belong to it."""
    setting = setting_meant(override.rstrip(": "), exactly=True)
    if setting and following and ("=" not in following[0] or following[0].startswith("=")):
        value = following.pop(0).removeprefix("=")
        value = following.pop(0) if not value and following else value
        return f"write it without spaces: {show(f'{setting}={value}')}"
    if setting:
        return f"it has no value; write {setting}=VALUE"
    if override.lower().endswith(DATA_SUFFIXES):
        return f"to train on these pairs, write {show(f'data.train={override}')}"
    if override.lower().endswith(_SETTINGS_SUFFIXES):
        return "a run has one file; name it first, and behind it settings such as preference.beta=0.2"
    return "write it as section.key=value, such as preference.beta=0.2"


def read_text(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        RequestError: there is no such file, it cannot be read, or it is not UTF-8 text of a configuration's size.
    """
    name = show_path(path)
    if path.is_dir():
        raise RequestError(f"{name} is a directory; {_files_in(path)}")
    try:
        if holds_pairs(path):
            raise RequestError(
                f"{name} holds data, and a run's settings are a YAML file; `wishbone init {shlex.quote(str(path))} "
                "--output run.yaml` writes one for these pairs"
            )
        with path.open("rb") as file:
            content = file.read(4 * MAX_CHARACTERS + 1)
        if len(content) > 4 * MAX_CHARACTERS:
            raise RequestError(f"{name} is too large; a configuration has at most {MAX_CHARACTERS} characters")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"{name} does not exist; {_files_beside(path)}") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RequestError(f"{name} cannot be read ({reason}); check the name and the permissions") from error


def _files_in(folder: Path) -> str:
    """What to name instead of a directory."""
    if (folder / "config.yaml").is_file():
        file = shlex.quote(str(folder / "config.yaml"))
        return f"it holds a run: `wishbone train {file} --resume` continues it where it has not ended"
    try:
        files = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _SETTINGS_SUFFIXES)
        runs = sorted(folder.glob("*/config.yaml"))
    except OSError as error:
        return f"it cannot be listed ({error.strerror or type(error).__name__}); name the YAML file in it"
    if files:
        return f"name the YAML file in it: {', '.join(map(show, files[:5]))}"
    if runs:
        return f"it holds runs: `wishbone train {shlex.quote(str(runs[-1]))} --resume` continues one that has not ended"
    return "there is no YAML file in it; name one"


def _files_beside(path: Path) -> str:
    """Which file the user may have meant by a name that does not exist."""
    if elsewhere := of_windows(str(path)):
        return elsewhere
    if setting_meant(path.name.partition("=")[0], exactly=True) and "=" in path.name:
        return f"it is a setting: name the file first, as in `wishbone train run.yaml {path.name}`"
    folder = path.parent
    if not folder.is_dir():
        return f"its folder {show_path(folder)} does not exist either"
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return "check the name"
    files = {entry.stem: entry for entry in entries if entry.suffix in _SETTINGS_SUFFIXES}
    if close := nearest(path.stem, files):
        return f"did you mean {show_path(files[close])}?"
    names = ", ".join(show(entry.name) for entry in list(files.values())[:5])
    return (
        f"the YAML files in {show_path(folder.absolute())} are {names}" if names else "there is no YAML file beside it"
    )
