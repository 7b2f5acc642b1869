"""Files of the reference store, damaged, forged, or somebody else's."""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from functools import cache
from pathlib import Path
from random import Random

from soak.damage import damaged_bytes
from soak.trials import Target

ROWS = 400


def _key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def values(first: int, count: int) -> dict[bytes, tuple[float, float]]:
    return {_key(i): (-i - 0.125, -2.0 * i - 1 / 3) for i in range(first, first + count)}


@cache
def _sound() -> bytes:
    import tempfile

    from wishbone.reference.store import ReferenceStore

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "store.sqlite"
        store = ReferenceStore(path)
        store.put(values(0, ROWS))
        store.close()
        return path.read_bytes()


def _forged(path: Path, random: Random) -> None:
    """Rows whose checksum is right and whose content is not."""
    packed = random.choice((b"", b"x", struct.pack("<d", 1.0), struct.pack("<3d", 1, 2, 3), struct.pack("<2d",
    float("nan"), 1),
                            struct.pack("<2d", float("-inf"), 1), bytes(100_000)))  # fmt: skip
    with sqlite3.connect(path) as connection:
        for number in random.sample(range(ROWS), 5):
            key = _key(number)
            checksum = hashlib.blake2b(key + packed, digest_size=8).digest()
            used = random.choice((0, -1, 2**62, "x", None))
            connection.execute(
                "UPDATE OR IGNORE reference_logps SET logps = ?, checksum = ?, used = coalesce(?, used) WHERE key = ?",
                (packed, checksum, used, key),
            )
    connection.close()


_STATEMENTS = (
    "PRAGMA user_version = 99",
    "DROP TABLE reference_logps",
    "CREATE TABLE t (x)",
    "CREATE TRIGGER t AFTER UPDATE ON reference_logps BEGIN DELETE FROM reference_logps; END",
    "ALTER TABLE reference_logps ADD COLUMN more",
    "PRAGMA journal_mode = DELETE",
)


def write_store(random: Random, directory: Path) -> Path:
    """A store that was damaged or forged."""
    path = directory / random.choice(("store.sqlite", "s", "s.db"))
    path.write_bytes(_sound())
    style = random.random()
    if style < 0.2:
        _forged(path, random)
    elif style < 0.3:
        with sqlite3.connect(path) as connection:
            connection.execute(random.choice(_STATEMENTS))
        connection.close()
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), random, head=random.choice((100, 4096, None))))
    if random.random() < 0.1:
        path.with_name(f"{path.name}-{random.choice(('wal', 'shm', 'journal'))}").write_bytes(random.randbytes(5000))
    return path


def read_store(path: Path) -> None:
    """Ask for all values and put more; a wrong value is a finding."""
    from wishbone.reference.store import ReferenceStore

    store = ReferenceStore(path, patience=2.0)
    known = values(0, ROWS)
    for _ in range(2):
        found = store.get(list(known))
        wrong = {key for key, value in found.items() if value != known[key]}
        if wrong:
            raise AssertionError(f"{len(wrong)} wrong values, such as {found[next(iter(wrong))]}")
        store.put(values(ROWS, 50))
    store.close()
    again = ReferenceStore(path, patience=2.0)
    more = values(ROWS, 50)
    if any(value != more[key] for key, value in again.get(list(more)).items()):
        raise AssertionError("a wrong value of the second half")
    again.close()


TARGETS = [Target("store", write_store, read_store)]
