"""Directories that appear whole or not at all: they are written next to their place and moved there at the end."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from wishbone.errors import RequestError
from wishbone.paths import unwritten


@contextmanager
def beside(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory next to `target` whose files move there when the block ends without an error.

    Args:
        target: the place. If it exists, files of the same name are replaced, weights of an earlier model are removed,
            and all other files stay.
        replace: nothing of what is there stays.

    Raises:
        OSError: the disk is full or fails. `target` is as it was.
    """
    with scratch_beside(target) as temporary:
        yield temporary
        if replace or not target.exists():
            _swap(temporary, target)
            return
        if any(temporary.glob("model*.safetensors")):
            for old in {*target.glob("model*.safetensors"), *target.glob("model*.safetensors.index.json")}:
                old.unlink()
        for entry in temporary.iterdir():
            os.replace(entry, target / entry.name)


@contextmanager
def writing(place: Path, instead: str = "name another place") -> Iterator[None]:
    """Context in which files are written for a place.

    Raises:
        RequestError: the disk is full or fails; `instead` is what may be done instead.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RequestError(unwritten(place, error, instead)) from error


@contextmanager
def scratch_beside(place: Path) -> Iterator[Path]:
    """Yield an empty directory on the disk of a file or directory, which is removed afterwards.

    Directories above `place` are made, and go again after an error.

    Raises:
        OSError: it cannot be made.
    """
    made = [parent for parent in place.parents if not os.path.lexists(parent)]
    scratch = _hidden(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(new: Path, place: Path) -> None:
    """Put a directory in the place of another, which stays where that fails."""
    old = _hidden(place)
    if place.exists():
        place.rename(old)
    try:
        new.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _hidden(place: Path) -> Path:
    """A name beside a place that nothing has; a long name is cut, because names have 255 bytes at most."""
    return place.with_name(f".{place.name[:60]}-{secrets.token_hex(4)}")
