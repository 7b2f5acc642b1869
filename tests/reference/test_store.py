"""The store gives back what was put in or nothing, whatever happens to its file, and never stops a run."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import multiprocessing
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from soak.store_files import read_store, write_store

from wishbone.errors import RequestError
from wishbone.reference.store import ReferenceStore
from wishbone.reference.store_owner import refuse_foreign

Values = dict[bytes, tuple[float, float]]


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def pairs(count: int, first: int = 0) -> Values:
    """Values that the key tells, so that any process can check any row."""
    return {key(i): (-i - 0.125, -2.0 * i - 1 / 3) for i in range(first, first + count)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "by the store" / "references.sqlite"


def filled(path: Path, count: int = 300) -> Values:
    store = ReferenceStore(path)
    store.put(pairs(count))
    store.close()
    return pairs(count)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_was_put_is_given_back_bit_by_bit(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = [-0.0, 0.0, 5e-324, -1.7976931348623157e308, float.fromhex("-0x1.99999ap-4"), -math.pi]
    values = {key(i): (value, odd[-1 - i]) for i, value in enumerate(odd)}
    store = ReferenceStore(path)
    assert store.get(list(values)) == {}
    store.put(values)
    for reader in (store, ReferenceStore(path)):
        found = reader.get([key(99), *values])
        assert {k: tuple(x.hex() for x in pair) for k, pair in found.items()} == {
            k: tuple(x.hex() for x in pair) for k, pair in values.items()
        }
    assert store.get([]) == {}
    assert not warnings_of(caplog)


def test_many_keys_are_asked_for_at_once(path: Path) -> None:
    values = filled(path, 2345)
    assert ReferenceStore(path).get([*map(key, range(5000))]) == values


def test_values_that_are_not_finite_are_not_kept(path: Path) -> None:
    store = ReferenceStore(path)
    store.put({key(0): (math.nan, -1.0), key(1): (-1.0, -math.inf), key(2): (math.inf, -1.0), key(3): (-1.0, -2.0)})
    assert store.get([key(i) for i in range(4)]) == {key(3): (-1.0, -2.0)}


def test_the_first_value_stays(path: Path) -> None:
    first, second = ReferenceStore(path), ReferenceStore(path)
    first.put({key(0): (-1.0, -2.0)})
    second.put({key(0): (-1.5, -2.5), key(1): (-3.0, -4.0)})
    assert first.get([key(0), key(1)]) == {key(0): (-1.0, -2.0), key(1): (-3.0, -4.0)}


@pytest.mark.parametrize("column", ["logps", "checksum"])
def test_a_flipped_byte_in_a_row_is_seen(path: Path, column: str, caplog: pytest.LogCaptureFixture) -> None:
    values = filled(path, 24)
    with sqlite3.connect(path) as connection:
        for i in range(24):
            content = bytearray(
                connection.execute(f"SELECT {column} FROM reference_logps WHERE key = ?", (key(i),)).fetchone()[0]
            )
            content[i % len(content)] ^= 1 << i % 8
            if i != 23:
                connection.execute(f"UPDATE reference_logps SET {column} = ? WHERE key = ?", (bytes(content), key(i)))
    connection.close()
    store = ReferenceStore(path)
    assert store.get(list(values)) == {key(23): values[key(23)]}
    assert len(warnings_of(caplog)) == 1 and "damaged rows" in caplog.text
    store.put(values)
    assert store.get(list(values)) == values
    assert len(warnings_of(caplog)) == 1


def test_rows_that_changed_places_or_types_are_seen(path: Path) -> None:
    values = filled(path, 6)
    with sqlite3.connect(path) as connection:
        rows = {row[0]: row[1:] for row in connection.execute("SELECT key, logps, checksum FROM reference_logps")}
        for mine, other in ((0, 1), (1, 0)):
            connection.execute(
                "UPDATE reference_logps SET logps = ?, checksum = ? WHERE key = ?", (*rows[key(other)], key(mine))
            )
        for i, value in ((2, "text"), (3, 17), (4, b"")):
            connection.execute("UPDATE reference_logps SET logps = ? WHERE key = ?", (value, key(i)))
    connection.close()
    assert ReferenceStore(path).get(list(values)) == {key(5): values[key(5)]}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_random_bytes_anywhere_in_the_file(path: Path, seed: int) -> None:
    values = filled(path)
    rng = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 3, 10])):
        start = rng.randrange(200) if seed % 5 == 0 else rng.randrange(len(data))
        length = rng.choice([1, 16, 600])
        data[start : start + length] = rng.randbytes(len(data[start : start + length]))
    path.write_bytes(data)
    store = ReferenceStore(path, private=True)
    found = store.get(list(values))
    assert found.items() <= values.items()
    store.put(values)
    assert store.get(list(values)) == values
    store.close()
    assert ReferenceStore(path).get(list(values)) == values


@pytest.mark.parametrize("seed", [607123, 607977])
def test_damaged_pages_give_no_row_of_another_key(tmp_path: Path, seed: int) -> None:
    """Files that `make soak` found: SQLite answered with sound rows that nobody had asked for."""
    read_store(write_store(random.Random(f"store {seed}"), tmp_path))


@pytest.mark.slow
def test_damage_done_while_the_store_is_open(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = filled(path, 60_000)  # more than SQLite keeps in memory
    store = ReferenceStore(path, private=True)
    assert store.get([key(0)])
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert store.get(list(values)).items() <= values.items()
    assert len(warnings_of(caplog)) == 1 and "is damaged" in caplog.text
    store.put(values)
    assert store.get(list(values)) == values
    store.close()
    assert ReferenceStore(path).get(list(values)) == values
    assert len(warnings_of(caplog)) == 1


def foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
        connection.execute("INSERT INTO accounts VALUES ('someone')")
        connection.execute("PRAGMA application_id = 77")
    connection.close()


def another_schema(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()


def another_table(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TRIGGER spy AFTER INSERT ON reference_logps BEGIN DELETE FROM reference_logps; END")
    connection.close()


def cut(path: Path) -> None:
    filled(path, 3000)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 100)


def no_database(path: Path) -> None:
    path.write_text("Dear diary, today I was mistaken for a database.\n" * 200)


@pytest.mark.parametrize(
    ("spoil", "said", "private"),
    [
        (foreign_database, "is a database of another application", True),
        (another_schema, "has another schema", False),
        (another_table, "has another schema", False),
        (cut, "is damaged", False),
        (no_database, "is damaged (file is not a database)", True),
    ],
)
def test_a_file_that_is_no_sound_store_is_moved_aside_whole(
    path: Path, spoil: object, said: str, private: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir(parents=True)
    spoil(path)  # type: ignore[operator]
    before = path.read_bytes()
    store = ReferenceStore(path, private=private)
    assert store.get([key(0)]) == {}
    store.put(pairs(2))
    assert store.get([key(0), key(1)]) == pairs(2)
    assert len(warnings_of(caplog)) == 1 and said in caplog.text
    aside = path.with_name(f"{path.name}.aside-1")
    assert aside.name in caplog.text
    assert aside.read_bytes() == before
    store.close()
    assert ReferenceStore(path).get([key(0), key(1)]) == pairs(2)
    assert len(warnings_of(caplog)) == 1


def database_without_a_name(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (foreign_database, "is a database of another application"),
        (database_without_a_name, "is a database of another application"),
        (no_database, "is not an SQLite database"),
    ],
)
def test_a_file_of_another_program_is_refused_and_left_alone(
    path: Path, spoil: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir(parents=True)
    spoil(path)  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(RequestError) as error:
        refuse_foreign(path)
    assert said in str(error.value)
    store = ReferenceStore(path)
    store.put(pairs(2))
    assert store.get([key(0)]) == {}
    assert said in caplog.text
    assert "is off for this run" in caplog.text
    assert path.read_bytes() == before
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, f".{path.name}.lock"}


def test_a_store_of_ours_is_not_refused_in_any_state(path: Path) -> None:
    refuse_foreign(path)
    path.parent.mkdir(parents=True)
    path.touch()
    refuse_foreign(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")  # a writer killed here leaves a header and nothing else
    connection.close()
    refuse_foreign(path)
    path.unlink()
    cut(path)
    refuse_foreign(path)


@pytest.mark.parametrize(
    "packed",
    [b"", b"x" * 15, b"x" * 17, struct.pack("<2d", math.nan, -1.0), struct.pack("<2d", -1.0, -math.inf), "text"],
)
def test_a_row_with_a_right_checksum_and_no_two_numbers_is_dropped(path: Path, packed: object) -> None:
    values = filled(path, 3)
    with sqlite3.connect(path) as connection:
        bytes_of = packed if isinstance(packed, bytes) else b""
        checksum = hashlib.blake2b(key(1) + bytes_of, digest_size=8).digest()
        connection.execute(
            "UPDATE reference_logps SET logps = ?, checksum = ? WHERE key = ?",
            ("" if packed is None else packed, checksum, key(1)),
        )
    connection.close()
    store = ReferenceStore(path)
    assert store.get(list(values)) == {key(0): values[key(0)], key(2): values[key(2)]}
    store.put(values)
    assert store.get(list(values)) == values


def test_what_was_moved_aside_is_never_overwritten(path: Path) -> None:
    path.parent.mkdir(parents=True)
    for number in (1, 2, 3):
        path.write_text(f"not a database, number {number}" * 50)
        store = ReferenceStore(path, private=True)
        store.get([key(0)])
        store.close()
    kept = {aside.name: aside.read_text() for aside in path.parent.glob("*.aside-?")}
    assert kept == {f"{path.name}.aside-{n}": f"not a database, number {n}" * 50 for n in (1, 2, 3)}


def test_journals_of_a_moved_file_do_not_meet_the_new_one(path: Path) -> None:
    filled(path)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").write_bytes(os.urandom(5000))
    path.write_bytes(b"no database" * 1000)
    store = ReferenceStore(path, private=True)
    store.put(pairs(3))
    store.close()
    assert ReferenceStore(path).get(list(pairs(300))) == pairs(3)
    assert Path(f"{path}.aside-1").read_bytes() == b"no database" * 1000


def test_an_empty_file_is_an_empty_store(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    store = ReferenceStore(path)
    store.put(pairs(2))
    assert ReferenceStore(path).get([key(0), key(1)]) == pairs(2)
    assert not warnings_of(caplog)


def assert_it_turns_itself_off(path: Path) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("wishbone").addHandler(handler)
    store = ReferenceStore(path)
    store.get([key(0)])
    for i in range(3):
        store.put(pairs(1, first=900 + i))
        assert store.get([key(900 + i)]) == {}
    logging.getLogger("wishbone").removeHandler(handler)
    assert len(said) == 1 and "is off for this run" in said[0], said


def test_a_directory_in_its_place(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "somebody's").write_text("file")
    assert_it_turns_itself_off(path)
    assert (path / "somebody's").read_text() == "file"


def test_a_file_in_place_of_its_directory(path: Path) -> None:
    path.parent.parent.mkdir(parents=True)
    path.parent.write_text("a file")
    assert_it_turns_itself_off(path)


def as_nobody(path: Path) -> None:
    if os.geteuid() == 0:  # nothing is read-only for root
        os.setegid(65534)
        os.seteuid(65534)
    with contextlib.suppress(OSError):
        (path.parent / "probe").touch()
        os._exit(2)
    assert_it_turns_itself_off(path)
    os._exit(0)


@pytest.mark.parametrize("there", [False, True])
def test_a_read_only_directory(there: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "references.sqlite"
        if there:
            filled(path)
            path.chmod(0o444)
        Path(folder).chmod(0o555)
        child = multiprocessing.get_context("fork").Process(target=as_nobody, args=(path,))
        child.start()
        child.join(30)
        Path(folder).chmod(0o755)
        assert child.exitcode == 0
        if there:
            assert ReferenceStore(path).get(list(pairs(300))) == pairs(300)


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from reference.test_store import ReferenceStore, key, pairs
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
store = ReferenceStore(Path(sys.argv[1]))
for first in range(0, 20_000, 1000):
    store.put(pairs(1000, first))
store.get([key(0)])
print("went on")
"""


def test_a_full_disk_turns_the_store_off_and_what_was_there_stays(path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(path), str(Path(__file__).parent.parent)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.stdout == "went on\n", outcome.stderr[-2000:]
    assert outcome.stderr.count("is off for this run") == 1
    everything = pairs(20_000)
    found = ReferenceStore(path).get(list(everything))
    assert found and len(found) % 1000 == 0 and found.items() <= everything.items()


def test_a_lock_that_is_not_given_back_turns_the_store_off(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(path, 3)
    other = sqlite3.connect(path, isolation_level=None)
    store = ReferenceStore(path, patience=0.1)
    assert store.get([key(0)])
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    store.put(pairs(1, first=10))
    assert time.monotonic() - began < 5
    assert "database is locked" in caplog.text and len(warnings_of(caplog)) == 1
    other.execute("ROLLBACK")
    other.close()
    assert ReferenceStore(path).get([key(0), key(10)]) == pairs(1)


def write(path: Path, first: int, count: int, step: int) -> None:
    store = ReferenceStore(path, private=True)
    for start in range(first, first + count, step):
        store.put(pairs(step, start))
        assert store.get([key(start)]) == pairs(1, start)
    os._exit(1 if store._off else 0)


def test_several_processes_write_at_once(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(path, first, 600, 10)) for first in (0, 300, 600, 900)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert ReferenceStore(path).get(list(pairs(2000))) == pairs(1500)
    assert not list(path.parent.glob("*.aside-*"))


def test_several_processes_find_the_same_damage(path: Path) -> None:
    path.parent.mkdir(parents=True)
    no_database(path)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(path, first, 200, 10)) for first in (0, 200, 400)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 3
    assert ReferenceStore(path).get(list(pairs(1000))) == pairs(600)
    assert len(list(path.parent.glob("*.aside-*"))) == 1


def endless(path: Path, ready: object) -> None:
    store = ReferenceStore(path)
    for start in range(0, 10**9, 50):
        store.put(pairs(50, start))
        with ready.get_lock():  # type: ignore[attr-defined]
            ready.value = start + 50  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_a_killed_writer_leaves_a_sound_store(path: Path, seconds: float, caplog: pytest.LogCaptureFixture) -> None:
    context = multiprocessing.get_context("fork")
    written = context.Value("l", 0)
    writer = context.Process(target=endless, args=(path, written))
    writer.start()
    while written.value < 500:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    reported = written.value
    found = ReferenceStore(path).get(list(pairs(reported + 50)))
    assert found.items() >= pairs(reported).items()
    assert found.items() <= pairs(reported + 50).items()
    assert not warnings_of(caplog)


def test_what_went_unused_longest_makes_room(path: Path) -> None:
    limit = 60_000
    store = ReferenceStore(path, limit_bytes=limit)
    store.put(pairs(600))
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "UPDATE reference_logps SET used = used - ? WHERE key = ?", [(5, key(i)) for i in range(600)]
        )
    connection.close()
    used_today = [key(i) for i in range(100, 200)]
    assert store.get(used_today) == pairs(100, first=100)
    for first in range(1000, 1600, 100):
        store.put(pairs(100, first))
    found = store.get(list(pairs(600)) + list(pairs(600, first=1000)))
    assert found.items() >= pairs(100, first=100).items() | pairs(600, first=1000).items()
    assert len(found) < 1200
    store.close()
    assert path.stat().st_size < 1.5 * limit


def test_a_limit_below_one_page_empties_the_store_and_ends(path: Path) -> None:
    store = ReferenceStore(path, limit_bytes=1)
    store.put(pairs(100))
    assert store.get(list(pairs(100))) == {}
