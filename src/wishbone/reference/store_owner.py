"""Whether a file belongs to another program; such a file must never be renamed or written as a reference store."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from wishbone.errors import RequestError

APPLICATION_ID = 0x57424E45  # "WBNE", at byte 68 of the file
_MAGIC = b"SQLite format 3\0"
_ID_PLACE = slice(68, 72)


def refuse_foreign(path: Path) -> None:
    """Raise RequestError if the file that is to be a reference store belongs to another program."""
    if reason := foreign(path):
        raise RequestError(
            f"reference_store: {str(path)!r} {reason}, and is left as it is; name a file that is not there yet, or auto"
        )


def foreign(path: Path) -> str | None:
    """Return why the file belongs to another program, to follow its name; None if it is ours, empty or not there.

    A damaged file still is ours when its header says so. A file that cannot be read is nobody's; using it fails later.
    """
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except OSError:
        return None
    if not head:
        return None
    if not head.startswith(_MAGIC):
        return "is not an SQLite database"
    if int.from_bytes(head[_ID_PLACE], "big") == APPLICATION_ID:
        return None
    return None if _is_new(path) else "is a database of another application"


def _is_new(path: Path) -> bool:
    """Whether the database holds nothing yet, or its journal makes it ours: a writer was killed as it began."""
    try:
        connection = sqlite3.connect(f"file:{quote(os.fsencode(path.absolute()))}?mode=ro", uri=True)
        try:
            (owner,) = connection.execute("PRAGMA application_id").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return False
    return bool(owner == APPLICATION_ID or (owner == 0 and tables == 0))
