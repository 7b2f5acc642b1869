"""A copy of the data without the faults that spoil a pair, as JSON lines of prompt, chosen and rejected."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from wishbone.atomic_file import whole_file
from wishbone.check.examine import Examination
from wishbone.check.kinds import KINDS
from wishbone.check.reading import Pair
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
                    file.write(json.dumps(_writable(pair, path.parent), ensure_ascii=False) + "\n")
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


def _writable(pair: Pair, folder: Path) -> Mapping[str, Any]:
    """A pair with its images as paths that begin at a folder, and as data URLs where they have no path.

    Raises:
        RequestError: an image's file is not below the folder, so a run could not read it from there.
    """
    if not pair.get("images"):
        return pair
    written = []
    for image in pair["images"]:
        if (content := image["bytes"]) is not None:
            written.append(f"data:;base64,{base64.b64encode(content).decode()}")
        elif image["path"].startswith("data:") or image["folder"] is None:
            written.append(image["path"])
        else:
            file, here = Path(image["folder"], image["path"]).absolute(), folder.absolute()
            if not file.is_relative_to(here):
                raise RequestError(
                    f"the image {image['path']!r:.80} lies outside of {folder}, where the clean copy goes, and a run "
                    f"reads images below the folder of its data; write the copy into {image['folder']}"
                )
            written.append(str(file.relative_to(here)))
    return {**pair, "images": written}
