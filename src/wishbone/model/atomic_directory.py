"""Directories that appear whole or not at all: they are written next to their place and moved there at the end."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Yield an empty directory next to `target` whose files move there when the block ends without an error.

    If `target` exists, files of the same name are replaced, weights of an earlier model are removed, and all other
    files stay.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        yield temporary
        if not target.exists():
            temporary.rename(target)
            return
        if any(temporary.glob("model*.safetensors")):
            for old in {*target.glob("model*.safetensors"), *target.glob("model*.safetensors.index.json")}:
                old.unlink()
        for entry in temporary.iterdir():
            os.replace(entry, target / entry.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
