"""Files of preference pairs of every format and layout, damaged, read as `wishbone train` reads them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import shutil
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from soak.damage import HUGE_INTEGER, as_json, damaged_bytes, damaged_value, hostile_value, random_name
from soak.trials import Target


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _turn(speaker: str, text: str) -> dict[str, str]:
    return {"from": speaker, "value": text}


def sound_row(layout: str, number: int) -> dict[str, Any]:
    """A pair of a layout (a key of `wishbone.data.formats.FORMATS`), another one for each number."""
    question, good, bad = f"What is {number} + 1?", f"It is {number + 1}.", f"It is {number * 7 + 3}, grüße."
    talk = f"\n\nHuman: {question}\n\nAssistant: "
    call = [{"type": "function", "function": {"name": "add", "arguments": json.dumps({"a": number})}}]
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    rows: dict[str, dict[str, Any]] = {
        "text": {"prompt": question, "chosen": good, "rejected": bad},
        "messages": {"prompt": [_user(question)], "chosen": [_assistant(good)], "rejected": [_assistant(bad)]},
        "prompt_and_conversations": {
            "prompt": question,
            "chosen": [_user(question), _assistant(good)],
            "rejected": [_user(question), _assistant(bad)],
        },
        "implicit_text": {"chosen": f"{question} {good}", "rejected": f"{question} {bad}"},
        "implicit_messages": {
            "chosen": [_user(question), _assistant(good)],
            "rejected": [_user(question), _assistant(bad)],
        },
        "transcript": {"chosen": talk + good, "rejected": talk + bad},
        "sharegpt": {
            "system": "Be right.",
            "tools": json.dumps([tool]),
            "conversations": [_turn("human", question)],
            "chosen": _turn("gpt", good),
            "rejected": _turn("gpt", bad),
        },
        "instruction": {
            "instruction": question,
            "input": "",
            "history": [["Hi", "Hello"]],
            "chosen": good,
            "rejected": bad,
        },
        "openai": {
            "input": {"messages": [_user(question)], "tools": [tool]},
            "preferred_output": [{"role": "assistant", "content": good, "tool_calls": call}],
            "non_preferred_output": [_assistant(bad)],
        },
    }
    return rows[layout]


LAYOUTS = (
    "text", "messages", "prompt_and_conversations", "implicit_text", "implicit_messages", "transcript", "sharegpt",
    "instruction", "openai",
)  # fmt: skip


def _rows(random: Random, layouts: Sequence[str] = LAYOUTS, most: int = 12) -> list[Any]:
    layout = random.choice(layouts)
    rows: list[Any] = [sound_row(layout, number) for number in range(random.randrange(1, most))]
    if random.random() < 0.1:
        rows = [{**row, "chat_template_kwargs": {"shout": True}, "tools": "[]"} for row in rows]
    return rows


def _with_damaged_rows(rows: list[Any], random: Random) -> list[Any]:
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(rows))
        rows[place] = damaged_value(rows[place], random)
    return rows


def _named(directory: Path, name: str, content: bytes) -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


def _packed(path: Path, random: Random) -> Path:
    """The file, at times compressed, and at times damaged after that."""
    content = path.read_bytes()
    if random.random() < 0.3:
        whole = gzip.compress(content) if random.random() < 0.9 else gzip.compress(content) * 2 + b"\0" * 5
        path.unlink()
        path = path.with_name(f"{path.name}.gz")
        content = damaged_bytes(whole, random) if random.random() < 0.7 else whole
    path.write_bytes(content)
    return path


def _bomb(random: Random, piece: bytes, times: int = 400) -> bytes:
    """Much text in a small file."""
    return gzip.compress(piece * (times * 2**20 // len(piece)), 1)


def write_lines(random: Random, directory: Path) -> Path:
    """JSON lines."""
    rows = _rows(random)
    style = random.random()
    if style < 0.003:
        return _named(
            directory, "bomb.jsonl.gz", _bomb(random, random.choice((b" ", b"[", b'{"prompt":"' + b"x" * 99)))
        )
    if style < 0.5:
        rows = _with_damaged_rows(rows, random)
    lines = [as_json(row).encode() for row in rows]
    if 0.5 <= style < 0.75:
        place = random.randrange(len(lines))
        lines[place] = damaged_bytes(lines[place], random)
    elif 0.75 <= style < 0.8:
        lines.insert(random.randrange(len(lines) + 1), as_json(hostile_value(random)).encode())
    ending = random.choice((b"\n", b"\n", b"\r\n", b"\r", b"\n\n"))
    content = random.choice((b"", b"", b"\xef\xbb\xbf", b"\xff\xfe")) + ending.join(lines) + ending
    if style >= 0.8:
        content = damaged_bytes(content, random)
    return _packed(_named(directory, random.choice(("p.jsonl", "p.ndjson", "p.JSONL")), content), random)


def write_json(random: Random, directory: Path) -> Path:
    """A JSON document: a list, an object around a list, columns."""
    rows = _rows(random)
    style = random.random()
    if style < 0.003:
        return _named(directory, "bomb.json.gz", _bomb(random, random.choice((b" ", b"[],", b"[")), 100))
    if style < 0.5:
        rows = _with_damaged_rows(rows, random)
    document: Any = random.choice(
        (
            rows,
            {"version": 1, "data": rows},
            {name: [row.get(name) if isinstance(row, dict) else row for row in rows] for name in ("prompt", "chosen")},
            {"train": rows, "test": rows},
        )
    )
    if 0.5 <= style < 0.65:
        document = damaged_value(document, random)
    content = as_json(document).encode(random.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")), "replace")
    if style >= 0.65:
        content = damaged_bytes(content, random)
    return _packed(_named(directory, "p.json", content), random)


def write_csv(random: Random, directory: Path) -> Path:
    """Comma-separated values, and the tab-separated ones that are not read."""
    rows = _rows(random, ("text", "implicit_text", "transcript", "instruction", "messages"))
    style = random.random()
    if style < 0.4:
        rows = _with_damaged_rows(rows, random)
    first = next((row for row in rows if isinstance(row, dict)), {})
    text = io.StringIO()
    writer = csv.writer(text, dialect=random.choice(("excel", "excel", "unix", "excel-tab")))
    names = list(first)
    if random.random() < 0.1:
        names = [*names, random.choice((*names, "", random_name(random)))]
    writer.writerow(names)
    for row in rows:
        cells = list(row.values()) if isinstance(row, dict) else [row]
        shown = (cell if isinstance(cell, str) else as_json(cell) for cell in cells)
        writer.writerow(
            [cell.replace(f"{HUGE_INTEGER}", "9" * 5000).encode("utf-8", "replace").decode() for cell in shown]
        )
    content = text.getvalue().encode()
    if style >= 0.4:
        content = damaged_bytes(content, random)
    if style > 0.97:
        content += b'"' + b"\n,x" * 50_000
    name = random.choice(("p.csv", "p.csv", "p.csv", "p.tsv"))
    return _packed(_named(directory, name, content), random)


_ODD_TYPES: tuple[Callable[[int], Any], ...] = (
    lambda n: pa.array([b"\xff"] * n, pa.binary()),
    lambda n: pa.array(["x"] * n, pa.large_string()),
    lambda n: pa.array(["x"] * n).dictionary_encode(),
    lambda n: pa.array([None] * n, pa.null()),
    lambda n: pa.array([1] * n, pa.int8()),
    lambda n: pa.array([1.5] * n, pa.float16()),
    lambda n: pa.array([2**62] * n, pa.timestamp("us")),
    lambda n: pa.array([-(2**40)] * n, pa.timestamp("s", "UTC")),
    lambda n: pa.array([2**31 - 1] * n, pa.date32()),
    lambda n: pa.array([2**40] * n, pa.duration("s")),
    lambda n: pa.array([1] * n, pa.decimal128(38, 10)),
    lambda n: pa.array([[("a", "b")]] * n, pa.map_(pa.string(), pa.string())),
    lambda n: pa.array([["x", None]] * n),
    lambda n: pa.array([[["x"]]] * n),
    lambda n: pa.array([{"role": "user", "content": "x", "extra": None}] * n),
    lambda n: pa.array([[{"role": "assistant", "content": None}]] * n),
    lambda n: pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32(), 2)),
    lambda n: pa.array([{"bytes": b"x", "path": "/etc/passwd"}] * n),
    lambda n: pa.array(["x"] * n, pa.string_view()),
)
_FEATURES = (
    "{", "[]", "5", '{"info": 7}', '{"info": {"features": 7}}',
    '{"info": {"features": {"prompt": {"_type": "Nothing"}}}}',
    '{"info": {"features": {"prompt": {"_type": "Image"}, "chosen": {"dtype": "string", "_type": "Value"}}}}',
    '{"info": {"features": {"prompt": {"dtype": "nothing", "_type": "Value"}}}}',
    '{"info": {"features": {"chosen": {"names": ["a"], "_type": "ClassLabel"}}}}',
    '{"info": {"features": {"chosen": {"_type": "Json"}, "rejected": {"_type": "Audio"}}}}',
    '{"info": {"features": {"chosen": {"_type": "Array2D", "shape": [1, 2], "dtype": "float32"}}}}',
)  # fmt: skip


def write_parquet(random: Random, directory: Path) -> Path:
    """Parquet: odd types, odd metadata, damaged pages and footers."""
    style = random.random()
    rows = _rows(random, ("text", "messages", "implicit_text", "implicit_messages", "transcript", "instruction"), 40)
    table = pa.Table.from_pylist(rows)
    if random.random() < 0.4:
        name = random.choice([*table.column_names, "tools", "chat_template_kwargs", "system"])
        column = random.choice(_ODD_TYPES)(len(table))
        replaced = table.drop([name]) if name in table.column_names else table
        table = replaced.append_column(name, column)
    if random.random() < 0.1:
        table = table.append_column(random.choice(table.column_names), pa.array(["again"] * len(table)))
    if random.random() < 0.2:
        table = table.replace_schema_metadata({"huggingface": random.choice(_FEATURES)})
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression=random.choice(("snappy", "gzip", "zstd", "none", "brotli", "lz4")),
        use_dictionary=random.random() < 0.5,
        row_group_size=random.choice((3, 1000)),
        data_page_version=random.choice(("1.0", "2.0")),
        write_page_index=random.random() < 0.3,
    )
    content = sink.getvalue()
    return _named(directory, "p.parquet", damaged_bytes(content, random) if style < 0.8 else content)


@cache
def _saved_once() -> dict[str, bytes]:
    """The files of a data set that `save_to_disk` wrote, by name."""
    import tempfile

    from datasets import Dataset

    with tempfile.TemporaryDirectory() as place:
        Dataset.from_list([sound_row("messages", number) for number in range(20)]).save_to_disk(place)
        return {file.name: file.read_bytes() for file in Path(place).iterdir()}


def write_saved(random: Random, directory: Path) -> Path:
    """A directory of `Dataset.save_to_disk`, one of its files damaged or gone."""
    files = dict(_saved_once())
    name = random.choice([*files, next(name for name in files if name.endswith(".arrow"))])
    match random.randrange(8):
        case 0:
            del files[name]
        case 1 if not name.endswith(".arrow"):
            files[name] = as_json(damaged_value(json.loads(files[name]), random)).encode()
        case 2:
            name = random.choice(("dataset_dict.json", "state.json", "dataset_info.json"))
            files[name] = as_json(damaged_value({"splits": ["train"], "features": {}}, random)).encode()
        case _:
            files[name] = damaged_bytes(files[name], random)
    for name, content in files.items():
        _named(directory, name, content)
    return directory


def write_directory(random: Random, directory: Path) -> Path:
    """Directories with files of several formats, odd names, links and what is no file."""
    inside = directory / random.choice(("pairs", "päirs 1", "p" * 200, "p\nq", "p\udcff"))
    inside.mkdir()
    for number in range(random.randrange(1, 4)):
        place = inside / random.choice(("", "data", "train", "a/b/c"))
        place.mkdir(parents=True, exist_ok=True)
        writer = random.choice((write_lines, write_json, write_csv, write_parquet, write_other))
        written = writer(random, place)
        renamed = (
            place / f"{random.choice(('train', 'test', 'x', 'valid-1', 'train_0'))}{number}{''.join(written.suffixes)}"
        )
        written.rename(renamed)
        if random.random() < 0.2:
            renamed.chmod(0)
    match random.randrange(6):
        case 0:
            (inside / "round.jsonl").symlink_to(inside)
        case 1:
            (inside / "gone.jsonl").symlink_to("nowhere")
        case 2:
            (inside / "self.jsonl").symlink_to("self.jsonl")
        case 3:
            (inside / "folder.jsonl").mkdir()
    return inside


def write_other(random: Random, directory: Path) -> Path:
    """Files in formats and compressions that other tools write."""
    content = b"\n".join(as_json(row).encode() for row in _rows(random))
    name = random.choice(
        ("p.jsonl.xz", "p.jsonl.bz2", "p.jsonl.zip", "p.jsonl.zst", "p.tsv", "p.arrow", "p.txt", "p", "p.gz")
    )
    if name.endswith(".xz"):
        content = lzma.compress(content)
    elif name.endswith(".bz2"):
        content = bz2.compress(content)
    elif name.endswith(".zip"):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("../p.jsonl", content)
        content = archive.getvalue()
    elif name.endswith(".zst"):
        content = pa.compress(content, "zstd", asbytes=True)
    elif name.endswith(".arrow"):
        sink = io.BytesIO()
        table = pa.Table.from_pylist(_rows(random, ("text", "messages")))
        with pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)
        content = sink.getvalue()
    elif name.endswith(".gz"):
        content = gzip.compress(content)
    if random.random() < 0.5:
        content = damaged_bytes(content, random)
    return _named(directory, name, content)


@cache
def _tokenizer() -> Any:
    from tiny import tiny_tokenizer

    return tiny_tokenizer()


def read_pairs(path: Path) -> None:
    """Read, tokenize and inspect as a run does: first refusing rows that do not fit, then leaving them out."""
    from wishbone.data.inspect import inspect_pairs, refuse_or_drop
    from wishbone.data.source import load_pairs
    from wishbone.data.tokenize import tokenize_pairs
    from wishbone.errors import RequestError

    tokenizer = _tokenizer()  # first of all, so that no case that counts pays for its imports
    refusal: RequestError | None = None
    for invalid_rows in ("refuse", "drop"):
        try:
            pairs = tokenize_pairs(load_pairs(path, invalid_rows=invalid_rows), tokenizer)
            found = inspect_pairs(pairs, max_length=64, truncation="keep_start")
            refuse_or_drop(pairs, found, invalid_rows)
            return
        except RequestError as error:
            refusal = error
    assert refusal is not None
    raise refusal


def _clear_after(read: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same, with the cache of `datasets` emptied now and then, so that it does not fill the disk."""
    count = 0

    def reading(path: Path) -> None:
        nonlocal count
        count += 1
        if count % 200 == 0:
            import datasets

            shutil.rmtree(Path(datasets.config.HF_DATASETS_CACHE), ignore_errors=True)
        read(path)

    return reading


_WRITERS = {
    "jsonl": write_lines,
    "json": write_json,
    "csv": write_csv,
    "parquet": write_parquet,
    "saved": write_saved,
    "directory": write_directory,
    "other": write_other,
}
TARGETS = [Target(name, write, _clear_after(read_pairs)) for name, write in _WRITERS.items()]
