"""Checkpoints on disk: there whole or not at all, and checked before they are used.

A checkpoint is written into `.saving/`, beside its place. When all of it is there, each file is flushed to the disk,
`manifest.json` records the size and the SHA-256 of each, and one rename puts it in its place. Older checkpoints are
deleted only then. So at any moment at which the process may be killed, the disk may fill up or the machine may lose
power, the last checkpoint is whole.

Reading recomputes every hash. The newest checkpoint without damage is used, and what was skipped is named.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from wishbone.cache import MANIFEST, file_digest
from wishbone.config.run_directory import checkpoints_in, step_of
from wishbone.data.json_text import parse_json

STAGING = ".saving"
"""Directory beside the checkpoints in which the next one is written."""
STATE = "trainer_state.json"
FINGERPRINT = "fingerprint.json"
"""What decides the result (`fingerprint.py`); whoever writes it writes a manifest too."""
_TOGETHER = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
"""Files that a checkpoint of one process has all of, or, where only the model is saved, none of."""


@dataclass(frozen=True)
class Choice:
    """Which checkpoint of a directory can be used.

    Attributes:
        path: the newest one without damage, or None.
        skipped: for each newer one, a line that says what is wrong with it.
    """

    path: Path | None
    skipped: list[str]


def newest_sound(folder: Path) -> Choice:
    """Check the checkpoints of a directory, newest first, up to the first one without damage."""
    skipped: list[str] = []
    for checkpoint in reversed(checkpoints_in(folder)):
        harm = damage(checkpoint)
        if harm is None:
            return Choice(checkpoint, skipped)
        skipped.append(f"{checkpoint} is damaged and was skipped: {harm}")
    return Choice(None, skipped)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, in a phrase, or None.

    Without a manifest, as in checkpoints of version 0.1.0 and of transformers, only what a file tells of itself is
    checked: archives of PyTorch hold checksums, a safetensors file its length.
    """
    try:
        text = (checkpoint / MANIFEST).read_bytes()
    except FileNotFoundError:
        return f"{MANIFEST}: no such file" if (checkpoint / FINGERPRINT).exists() else _visible_damage(checkpoint)
    except OSError as error:
        return f"{MANIFEST}: {error.strerror}"
    try:
        files = [(name, int(facts["size"]), str(facts["sha256"])) for name, facts in parse_json(text)["files"].items()]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return f"{MANIFEST} cannot be read"
    listed = {name for name, _, _ in files}
    for name in (STATE, *_TOGETHER):  # not every file: callbacks add some once the manifest is written
        if name not in listed and (checkpoint / name).exists():
            return f"{name} is not in {MANIFEST}"
    for name, size, _ in files:
        try:
            found = (checkpoint / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
    with ThreadPoolExecutor() as pool:
        try:
            digests = list(pool.map(lambda file: file_digest(checkpoint / file[0]), files))
        except OSError as error:
            return f"{Path(error.filename).name if error.filename else 'a file'} cannot be read ({error.strerror})"
    changed = [name for (name, _, expected), digest in zip(files, digests, strict=True) if digest != expected]
    return f"{', '.join(changed)} changed since it was written (other SHA-256)" if changed else None


def has_manifest(checkpoint: Path) -> bool:
    """Whether damage of a checkpoint would be seen."""
    return (checkpoint / MANIFEST).exists()


def is_rolling(checkpoint: Path) -> bool:
    """Whether a checkpoint was written because of the time, to be replaced by the next one."""
    try:
        return parse_json((checkpoint / MANIFEST).read_bytes()).get("rolling") is True
    except (OSError, ValueError, AttributeError):
        return False


def publish(written: Path, place: Path, *, rolling: bool = False) -> None:
    """Flush a written checkpoint to the disk with a manifest, and move it to its place.

    Args:
        written: the directory with all files, on the file system of `place`.
        place: where it goes. What is there goes away, but for files that the new one does not have.
        rolling: noted in the manifest, for `rotate`.

    Raises:
        OSError: the disk is full, or fails. Nothing is at `place` then that was not there before.
    """
    if place.exists():
        for old in [path for path in place.rglob("*") if path.is_file()]:
            if not (kept := written / old.relative_to(place)).exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(old, kept)
    files = sorted(path for path in written.rglob("*") if path.is_file() and path != written / MANIFEST)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_flushed_digest, files))
    facts = {
        path.relative_to(written).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, digests, strict=True)
    }
    manifest = written / MANIFEST
    manifest.write_text(json.dumps({"rolling": rolling, "files": facts}, indent=1) + "\n", encoding="utf-8")
    _flush(manifest)
    for directory in [written, *(path for path in written.rglob("*") if path.is_dir())]:
        _flush(directory)
    if place.exists():
        place.rename(written.parent / "replaced")
    written.rename(place)
    _flush(place.parent)


def rotate(folder: Path, limit: int | None, protected: Collection[Path], written: Path | None = None) -> None:
    """Delete the checkpoints that are not to be kept.

    Kept are the newest `limit` of those that were asked for by step or epoch (all without a limit). A rolling one is
    kept if it is the newest of all, or needed to make two: should the newest be damaged, the other one is used. Where
    `limit` is 1 the newest of all is the only one.

    The newest is the one just written. Those of later steps are older: they were damaged and skipped, or training went
    back to before them.

    Args:
        folder: of the checkpoints.
        limit: how many are kept, or None.
        protected: checkpoints that stay in any case.
        written: the one just written; None: that of the last step.
    """
    everything = checkpoints_in(folder)
    if written is not None:
        everything.sort(key=lambda path: (step_of(path) <= step_of(written), step_of(path)))
    asked = [path for path in everything if not is_rolling(path)]
    if limit == 1:
        kept = everything[-1:]
    else:
        kept = asked[-limit:] if limit else asked
        for path in reversed(everything):
            if path not in kept and path not in asked and (path == everything[-1] or len(kept) < 2):
                kept = [*kept, path]
    for path in everything:
        if path not in kept and path not in protected:
            shutil.rmtree(path, ignore_errors=True)


def _flushed_digest(path: Path) -> str:
    _flush(path)
    return file_digest(path)


def _flush(path: Path) -> None:
    """Have the system write what it holds of a file or of a directory's list to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _visible_damage(checkpoint: Path) -> str | None:
    """Damage that is visible without a manifest. The state is written last, so where it is whole the rest is there."""
    try:
        parse_json((checkpoint / STATE).read_bytes())["global_step"]
    except OSError as error:
        return f"{STATE}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{STATE} cannot be read"
    there = [name for name in _TOGETHER if (checkpoint / name).exists()]
    sharded = any(path.is_dir() for path in checkpoint.iterdir())
    if _TOGETHER[-1] in there and not sharded and len(there) < len(_TOGETHER):
        return f"{', '.join(sorted(set(_TOGETHER) - set(there)))}: no such file"
    for path in sorted(checkpoint.rglob("*")):
        try:
            if path.suffix in (".pt", ".pth", ".bin"):
                with zipfile.ZipFile(path) as archive:
                    broken = archive.testzip()
                if broken is not None:
                    return f"{path.name} does not have its own checksum"
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="np"):
                    pass
        except (OSError, zipfile.BadZipFile, SafetensorError, EOFError):
            return f"{path.name} cannot be read"
    return None
