"""Which names in a configuration are paths, and what they point to.

A name such as `pairs/train` can be a directory or a data set on the hub. So a name counts as a path if that path
exists, and it must be a path if it can be nothing else: `./x`, `~/x`, `/x`, `x.gguf`, `x.jsonl`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from wishbone.config.document import show_path
from wishbone.config.explain import Where, nearest
from wishbone.config.schema import EMBEDDED_MODEL, RunConfig
from wishbone.errors import RequestError
from wishbone.paths import of_windows, user_path

_MODEL_SUFFIXES = (".gguf",)
DATA_SUFFIXES = (
    ".json",
    ".jsonl",
    ".ndjson",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
    ".gz",
    ".zst",
    ".xz",
    ".bz2",
    ".zip",
)
"""Endings of files that can hold pairs."""


def locate_paths(config: RunConfig, beside: Path, where: Where) -> tuple[RunConfig, list[str]]:
    """Make the paths of a configuration absolute: the current directory first, then `beside`.

    Args:
        config: as written.
        beside: folder of the file that it was written in.
        where: returns where a field was given, such as " (line 12)", or "".

    Returns:
        The configuration, and a sentence for every path that does not exist, with the most similar name that does.
    """
    problems: list[str] = []

    def is_sound(section: str, key: str, name: str) -> bool:
        try:
            user_path(name)
        except RequestError as error:
            problems.append(f"{section}.{key}{where((section, key))}: {error}")
            return False
        return True

    def existing(section: str, key: str, suffixes: tuple[str, ...]) -> str | None:
        name: str | None = getattr(getattr(config, section), key)
        if section == "data" and (refusal := refused_address(name or "")):
            problems.append(f"{section}.{key}{where((section, key))}: {refusal}")
            return name
        if name is None or name == EMBEDDED_MODEL or "://" in name or not is_sound(section, key, name):
            return name
        found = _find(name, beside)
        if found is None and _must_be_path(name, suffixes):
            problems.append(
                f"{section}.{key}{where((section, key))}: {show_path(name)} does not exist; {_hint(name, beside)}"
            )
        return name if found is None else str(found)

    def place(section: str, key: str, name: str) -> str:
        """Where the run writes: what is there already, or the path below the current directory."""
        return str(_find(name, beside) or user_path(name).absolute()) if is_sound(section, key, name) else name

    models = {key: existing("model", key, _MODEL_SUFFIXES) for key in ("name", "reference")}
    pairs = {key: existing("data", key, DATA_SUFFIXES) for key in ("train", "eval")}
    output, training = config.output, config.training
    if output.dir is not None:
        output = output.model_copy(update={"dir": place("output", "dir", output.dir)})
    if training.reference_store not in ("auto", "off"):
        store = place("training", "reference_store", training.reference_store)
        training = training.model_copy(update={"reference_store": store})
    model = config.model.model_copy(update=models)
    changed = {"model": model, "data": config.data.model_copy(update=pairs), "training": training, "output": output}
    return config.model_copy(update=changed), problems


def holds_pairs(path: Path) -> bool:
    """Whether a file holds pairs and not the settings of a run, which JSON can hold as well.

    Raises:
        OSError: it cannot be read.
    """
    name = path.name.lower()
    if not name.endswith(".json"):
        return name.endswith(DATA_SUFFIXES) and path.is_file()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        lines = file.read(2**16).strip().splitlines()
    return bool(lines) and (lines[0][:1] == b"[" or (len(lines) > 1 and all(_is_row(line) for line in lines[:2])))


def _is_row(line: bytes) -> bool:
    return line.startswith(b"{") and line.rstrip().endswith(b"}")


def refused_address(name: str) -> str | None:
    """What to write instead of an address of data, such as `https://...`; None where the name is none."""
    if "://" not in name:
        return None
    hub = re.match(r"(?:https?://(?:www\.)?huggingface\.co|hf:/)/datasets/([\w.-]+/[\w.-]+)", name)
    remedy = f"write {hub[1]}, its name on the hub" if hub else "download the file and give its path"
    return f"{show_path(name)} is an address, and pairs are read from files and the hub; {remedy}"


def _find(name: str, beside: Path) -> Path | None:
    path = user_path(name)
    here = (Path.cwd() / path, (beside / path).absolute())
    return next((Path(os.path.normpath(candidate)) for candidate in here if os.path.exists(candidate)), None)


def _must_be_path(name: str, suffixes: tuple[str, ...]) -> bool:
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.lower().endswith(suffixes)


def _hint(name: str, beside: Path) -> str:
    if elsewhere := of_windows(name):
        return elsewhere
    folders = dict.fromkeys(
        os.path.normpath((start / os.path.expanduser(name)).absolute().parent) for start in (Path.cwd(), beside)
    )
    for folder in folders:
        if (
            os.access(folder, os.R_OK)
            and os.path.isdir(folder)
            and (close := nearest(Path(name).name, os.listdir(folder)))
        ):
            return f"did you mean {show_path(os.path.join(folder, close))}?"
    return f"looked in {' and in '.join(map(show_path, folders))}"
