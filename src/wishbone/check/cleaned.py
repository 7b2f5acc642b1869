"""A copy of the data without the faults that spoil a pair, as JSON lines of prompt, chosen and rejected."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from wishbone.atomic_file import whole_file
from wishbone.check.examine import Examination
from wishbone.check.kinds import KINDS
from wishbone.errors import RequestError
from wishbone.paths import unwritten


def refuse_existing(path: Path) -> None:
    """Refuse a path where something is already, or whose directory is missing.

    Raises:
        RequestError: with what to do.
    """
    if os.path.lexists(path):
        raise RequestError(f"{path} exists, and a clean copy never replaces a file; name another one")
    if not path.parent.is_dir():
        raise RequestError(f"{path.parent} is not a directory; make it, or name another place for the clean copy")
    if path.suffix != ".jsonl":
        raise RequestError(f"{path}: a clean copy is JSON lines; let its name end with .jsonl")


def write_cleaned(found: Examination, path: Path) -> tuple[int, Mapping[str, int]]:
    """Write the pairs without a fault that spoils them; the sources are read once more.

    Args:
        found: what was examined.
        path: a file that is not there yet; it is written as a whole or not at all.

    Returns:
        How many pairs were written, and how many were left out for each fault, each pair under its first one.

    Raises:
        RequestError: the sources changed meanwhile, the file exists, or it cannot be written.
    """
    dropped: dict[str, int] = {}
    try:
        with whole_file(path, new=True) as file:
            count = kept = 0
            for index, (_, pair) in enumerate(chain.from_iterable(found.readers)):
                count += 1
                if count > len(found.ledger):
                    break
                fault = next((name for name in found.ledger.of_pair(index) if KINDS[name].dropped), None)
                if fault is None:
                    file.write(json.dumps(pair, ensure_ascii=False) + "\n")
                    kept += 1
                else:
                    dropped[fault] = dropped.get(fault, 0) + 1
            if count != len(found.ledger):
                raise RequestError("the data changed while it was read; try again when nothing writes it")
    except FileExistsError:
        raise RequestError(f"{path} exists, and a clean copy never replaces a file; name another one") from None
    except OSError as error:
        raise RequestError(f"--fix: {unwritten(path, error)}") from None
    return kept, dropped
