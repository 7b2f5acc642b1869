"""The reference store: log-probabilities kept in one SQLite file, across epochs, runs and processes.

A row is one pair: its key (a hash of everything that decides the values, see `cache.py`), two float64, the day of
its last use, and a checksum over key and values. The file is checked wherever it is read:

- A store that has another schema or fails SQLite's own check is moved aside and a new one is started; one warning says
  so. A file of another program is left alone, except in Wishbone's own cache.
- A row whose checksum, length or values are wrong is deleted and counts as absent.
- A file that cannot be written (read-only, disk full, locked for longer than a writer may take) turns the store off for
  the rest of the process; one warning says so. Training continues: what is not stored is computed.

Any number of processes may read and write. The first value of a pair stays, so two runs that compute it at the same
time continue with the same value. When the file grows beyond its limit, the rows unused for longest are deleted.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
from filelock import FileLock, Timeout

from wishbone.reference.store_owner import APPLICATION_ID, foreign

LIMIT_BYTES = 2**29
"""Size of the file above which old rows are deleted; about nine million pairs."""

SCHEMA_VERSION = 1
SCHEMA = (
    "CREATE TABLE reference_logps "
    "(key BLOB PRIMARY KEY, logps BLOB NOT NULL, checksum BLOB NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID"
)
VALUES = struct.Struct("<2d")
KEYS_A_QUERY = 500
SECONDS_A_DAY = 86_400
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p", "fuse.")
"""Beginnings of the names of file systems on which SQLite's write-ahead log has no shared memory."""

Logps = tuple[float, float]
Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


class _UnfitError(Exception):
    """The file is not a sound store; the text says why."""


class ReferenceStore:
    """Log-probabilities of pairs by key, in an SQLite file that is opened at first use.

    Args:
        path: the file; directories above it are made.
        limit_bytes: size above which the rows unused for longest are deleted.
        patience: seconds to wait for another process's lock.
        private: the file lies in Wishbone's own cache, so whatever stands in its place is a damaged store.
    """

    def __init__(
        self, path: Path, *, limit_bytes: int = LIMIT_BYTES, patience: float = 10.0, private: bool = False
    ) -> None:
        self.path = path
        self._private = private
        self._limit_bytes, self._patience = limit_bytes, patience
        self._connection: sqlite3.Connection | None = None
        self._off = False
        self._warned_of_rows = False
        self._touched: set[bytes] = set()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Logps]:
        """Return chosen and rejected log-probability of the keys that are stored and undamaged."""
        return self._attempt(lambda connection: self._read(connection, keys), {}) if keys else {}

    def put(self, values: Mapping[bytes, Logps]) -> None:
        """Store the finite values; a key that is stored already keeps its value."""
        finite = {key: pair for key, pair in values.items() if all(map(math.isfinite, pair))}
        if finite or self._touched:
            self._attempt(lambda connection: self._write(connection, finite), None)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Logps]:
        found: dict[bytes, Logps] = {}
        unsound: list[tuple[bytes]] = []
        today, wanted = _today(), set(keys)
        for first in range(0, len(keys), KEYS_A_QUERY):
            asked = list(keys[first : first + KEYS_A_QUERY])
            query = (
                f"SELECT key, logps, checksum, used FROM reference_logps WHERE key IN ({','.join('?' * len(asked))})"
            )
            for key, packed, checksum, used in connection.execute(query, asked):
                if key not in wanted:  # a damaged index leads to rows of other keys
                    continue
                values = _unpacked(packed) if checksum == _checksum(key, packed) else None
                if values is None:
                    unsound.append((key,))
                    continue
                found[key] = values
                if used != today:
                    self._touched.add(key)
        if unsound:
            with _transaction(connection):
                connection.executemany("DELETE FROM reference_logps WHERE key = ?", unsound)
            if not self._warned_of_rows:
                logger.warning("The reference store %s has damaged rows; their values are computed again.", self.path)
                self._warned_of_rows = True
        return found

    def _write(self, connection: sqlite3.Connection, values: Mapping[bytes, Logps]) -> None:
        today = _today()
        packed = [(key, VALUES.pack(*pair)) for key, pair in values.items()]
        rows = [(key, logps, _checksum(key, logps), today) for key, logps in packed]
        with _transaction(connection):
            connection.executemany("INSERT OR IGNORE INTO reference_logps VALUES (?, ?, ?, ?)", rows)
            connection.executemany(
                "UPDATE reference_logps SET used = ? WHERE key = ?", [(today, key) for key in self._touched]
            )
            while self._outgrown(connection):
                connection.execute(
                    "DELETE FROM reference_logps WHERE key IN (SELECT key FROM reference_logps ORDER BY used "
                    "LIMIT (SELECT 1 + count(*) / 8 FROM reference_logps))"
                )
        self._touched.clear()

    def _outgrown(self, connection: sqlite3.Connection) -> bool:
        pages, free, size = (_pragma(connection, name) for name in ("page_count", "freelist_count", "page_size"))
        rows = connection.execute("SELECT EXISTS (SELECT 1 FROM reference_logps)").fetchone()[0]
        return bool(rows) and (pages - free) * size > self._limit_bytes

    def _attempt(self, work: Callable[[sqlite3.Connection], Answer], otherwise: Answer) -> Answer:
        """Do `work`; if the file turns out to be damaged, repeat it with a new one; if it fails, turn the store off."""
        if self._off:
            return otherwise
        try:
            try:
                return work(self._opened())
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not _is_damage(error):
                    raise
                self.close()
                return work(self._opened())
        except (sqlite3.Error, UnicodeDecodeError, OSError, Timeout, _UnfitError) as error:
            logger.warning("The reference store %s cannot be used and is off for this run: %s.", self.path, str(error))
            self._off = True
            self.close()
            return otherwise

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=self._patience):
                try:
                    self._connection = self._connect()
                except _UnfitError as unfit:
                    if not self._private and (reason := foreign(self.path)):
                        raise _UnfitError(f"it {reason}") from unfit
                    aside = self._move_aside()
                    logger.warning(
                        "The reference store %s %s; it is now %s, and a new one is started.",
                        self.path,
                        str(unfit),
                        aside.name,
                    )
                    self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        """Open the file; create it if there is none.

        Raises:
            _UnfitError: it is not a sound store.
        """
        connection = sqlite3.connect(self.path, timeout=self._patience, isolation_level=None, check_same_thread=False)
        try:
            connection.text_factory = bytes  # text where bytes belong is damage, and need not decode
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA synchronous = NORMAL")
            owner = _pragma(connection, "application_id"), _pragma(connection, "user_version")
            tables = connection.execute("SELECT sql FROM sqlite_master").fetchall()
            if owner == (0, 0) and not tables:
                if not _on_network(self.path):
                    connection.execute("PRAGMA journal_mode = WAL")
                with _transaction(connection):
                    connection.execute(SCHEMA)
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif owner[0] != APPLICATION_ID:
                raise _UnfitError("is a database of another application")
            elif owner[1] != SCHEMA_VERSION or tables != [(SCHEMA.encode(),)]:
                raise _UnfitError("has another schema")
            elif connection.execute("PRAGMA quick_check(1)").fetchone() != (b"ok",):
                raise _UnfitError("is damaged")
        except BaseException as error:
            connection.close()
            if _is_damage(error):
                raise _UnfitError(f"is damaged ({error})") from error
            raise
        return connection

    def _move_aside(self) -> Path:
        """Rename the file, never onto another one; its journals, which must not meet the new file, go with it."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.aside-{number}")).exists():
            number += 1
        for suffix in ("", "-wal", "-shm", "-journal"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{aside}{suffix}")
        return aside


def _checksum(key: bytes, packed: object) -> bytes | None:
    """The checksum of a row; None if its values are not bytes."""
    return hashlib.blake2b(key + packed, digest_size=8).digest() if isinstance(packed, bytes) else None


def _unpacked(packed: bytes) -> Logps | None:
    """The two values of a row, if it holds two that are finite."""
    if len(packed) != VALUES.size:
        return None
    chosen, rejected = VALUES.unpack(packed)
    return (chosen, rejected) if math.isfinite(chosen) and math.isfinite(rejected) else None


def _today() -> int:
    return int(time.time() // SECONDS_A_DAY)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _is_damage(error: BaseException) -> bool:
    """Whether an error means that the file's content is wrong; a message that cannot be decoded means that too."""
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _on_network(path: Path) -> bool:
    """Whether the file lies on a network file system."""
    place = path.parent.resolve()
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    above = [str(folder) for folder in (place, *place.parents) if str(folder) in mounts]
    return bool(above) and mounts[above[0]].startswith(NETWORK_FILE_SYSTEMS)
