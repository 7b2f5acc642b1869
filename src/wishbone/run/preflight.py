"""What a run reads and writes, tried before anything is loaded.

Loading a model takes minutes. Whether its files and the data can be read, and whether there is room where the run and
its caches write, is known in a moment: the first byte of each file is read, and a mebibyte is written to a file without
a name, which leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wishbone.cache import MANIFEST, cache_root
from wishbone.config.document import show_path
from wishbone.config.run_directory import CHECKPOINTS
from wishbone.config.schema import EMBEDDED_MODEL, RunConfig
from wishbone.config.trackers import chosen_trackers, missing_trackers
from wishbone.errors import RequestError
from wishbone.paths import files_below, unwritten, user_path
from wishbone.reference.store_owner import refuse_foreign

PROBE = 2**20
"""Bytes written where a run or a cache will write much more."""


def check_access(config: RunConfig, *, writes: bool = True) -> None:
    """Try what a run will do with files.

    Args:
        config: of the run, `output.dir` set.
        writes: whether it will write results; a dry run fills the cache of data and nothing else.

    Raises:
        RequestError: with everything that cannot be read or written, and what to do about it.
    """
    problems = [
        *_unreadable(config),
        *_adapters(config),
        *missing_trackers(chosen_trackers(config.output.report_to), "output.report_to"),
    ]
    places = [(_data_cache(), "the cache of data sets", "HF_DATASETS_CACHE")]
    if _converts(config):
        places.append((cache_root(), "the cache of models", "WISHBONE_CACHE"))
    for place, what, variable in places:
        if error := obstacle(place):
            instead = f"set {variable} to a directory that can be written"
            problems.append(f"{what} {unwritten(place, error, instead)}")
    if writes and config.output.dir is not None:
        place = Path(config.output.dir)
        errors = [(path, error) for path in (place, place / CHECKPOINTS) if (error := obstacle(path))]
        if errors:
            problems.append(f"output.dir: {unwritten(*errors[0], 'name another directory')}")
    if problems:
        raise RequestError(problems)
    if config.training.reference_store not in ("auto", "off"):
        refuse_foreign(user_path(config.training.reference_store))


def _unreadable(config: RunConfig) -> Iterator[str]:
    """A sentence for each input that is on this machine and cannot be read."""
    inputs = {
        "model.name": config.model.name,
        "model.reference": config.model.reference,
        "data.train": config.data.train,
        "data.eval": config.data.eval,
    }
    for field, name in inputs.items():
        if name is None or name == EMBEDDED_MODEL or "://" in name:
            continue
        path = user_path(name)
        refused = [(file, reason) for file in _files(path) if (reason := _first_byte(file))]
        if refused:
            file, reason = refused[0]
            more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
            yield f"{field}: {show_path(file)} cannot be read ({reason}){more}; check the files and their permissions"


def _adapters(config: RunConfig) -> Iterator[str]:
    """A sentence for each model that is an adapter."""
    for field, name in (("model.name", config.model.name), ("model.reference", config.model.reference)):
        if name is not None and (user_path(name) / "adapter_config.json").is_file():
            yield (
                f"{field}: {show_path(user_path(name))} holds an adapter, not a model; name its base model, or merge "
                "the two with PEFT"
            )


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or the files of a directory; nothing for a name that is no path here."""
    if path.is_dir():
        below = (file for file in files_below(path) if not file.name.startswith((".", "_")) or file == path)
        yield from (file for file in below if file == path or file.is_file() or not file.is_symlink())
    elif path.is_file():
        yield path


def _first_byte(path: Path) -> str | None:
    """Why the file cannot be read, or None."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def obstacle(place: Path) -> OSError | None:
    """Why nothing can be written into a directory that may not be there yet, or None."""
    try:
        there = next(parent for parent in (place, *place.absolute().parents) if os.path.lexists(parent))
        if not there.is_dir():
            return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _data_cache() -> Path:
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE)


def _converts(config: RunConfig) -> bool:
    """Whether a model of the run is made from a GGUF file, and has not been made yet as far as its name tells."""
    names = [name for name in (config.model.name, config.model.reference) if name is not None]
    made = any(cache_root().glob(f"{EMBEDDED_MODEL}-*/{MANIFEST}"))
    return any(name.lower().endswith(".gguf") or (name == EMBEDDED_MODEL and not made) for name in names)
