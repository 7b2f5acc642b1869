"""Directories that are made once, checked at every use, and never seen half-made.

A directory is built under a temporary name beside its place and renamed into it, so it is there whole or not at all.
Its manifest records size, modification time and SHA-256 of every file. A file whose size and time are as recorded is
taken as sound (a stat, microseconds); one whose time differs, as after a copy, is hashed; one that differs is damage,
and the directory is built again. A file lock lets one process build while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from wishbone.errors import RequestError
from wishbone.paths import unwritten, user_path

MANIFEST = "manifest.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cache:
    """A directory that keeps others, and the environment variable that puts it elsewhere."""

    root: Path
    variable: str


def cache_root() -> Path:
    """Return the user's cache: $WISHBONE_CACHE, or $XDG_CACHE_HOME/wishbone, or ~/.cache/wishbone."""
    if own := os.environ.get("WISHBONE_CACHE"):
        return user_path(own)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "wishbone"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def kept_directory(name: str, build: Callable[[Path], None], cache: Cache | None = None) -> Path:
    """Return the sound directory `name` of a cache, after `build(empty_directory)` where there is none yet.

    Any number of processes may call this at once; one builds. A damaged directory is rebuilt and a warning says so.

    Args:
        name: of the directory.
        build: fills it.
        cache: None is the user's cache of Wishbone.

    Raises:
        RequestError: the cache cannot be written, or `build` refuses.
    """
    cache = cache or Cache(cache_root(), "WISHBONE_CACHE")
    root = cache.root
    place = root / name
    if _damage(place) is None:
        return place
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            damage = _damage(place)
            if damage is None:
                return place
            if place.exists():
                logger.warning("the cached %s is damaged (%s); building it again", place, damage)
            _replace(place, build)
    except OSError as error:
        instead = f"set {cache.variable} to a directory that can be written"
        raise RequestError(f"the cache {unwritten(root, error, instead)}") from error
    return place


def files_of(directory: Path) -> list[Path]:
    """Return the files that a kept directory was made with, by name; others may have been put beside them since."""
    return [directory / name for name in sorted(json.loads((directory / MANIFEST).read_text(encoding="utf-8")))]


def _replace(place: Path, build: Callable[[Path], None]) -> None:
    """Build beside `place` and rename into it. Called under the lock, so leftovers belong to builds that died."""
    for leftover in place.parent.glob(f".{place.name}.*.building"):
        shutil.rmtree(leftover, ignore_errors=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".building", dir=place.parent))
    try:
        fresh = workshop / "fresh"
        fresh.mkdir()
        build(fresh)
        _write_manifest(fresh)
        if place.exists():
            place.rename(workshop / "damaged")
        fresh.rename(place)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _write_manifest(directory: Path) -> None:
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        stat = path.stat()
        files[path.relative_to(directory).as_posix()] = {
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256": file_digest(path),
        }
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")
    for name in files:
        shutil.copymode(manifest, directory / name)


def _damage(directory: Path) -> str | None:
    """Say what differs from the manifest, or None when nothing does."""
    try:
        files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for name, recorded in files.items():
            path = directory / name
            stat = path.stat()
            if stat.st_size != recorded["size"]:
                return f"{name} has {stat.st_size} bytes instead of {recorded['size']}"
            if stat.st_mtime_ns != recorded["mtime_ns"] and file_digest(path) != recorded["sha256"]:
                return f"{name} does not have its recorded SHA-256"
    except OSError as error:
        return f"{Path(error.filename).name if error.filename else directory.name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    return None
