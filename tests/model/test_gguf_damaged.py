"""A GGUF file of lies or with damage is refused in words, in bounded time and memory."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
from soak.gguf_files import ARRAY, BOOL, F32, I32, STRING, TARGETS, U8, U32, U64, Header, sound
from soak.trials import run_case

from wishbone.data import chat_template
from wishbone.errors import RequestError
from wishbone.model import gguf
from wishbone.model.gguf_header import DamagedError, read_header
from wishbone.model.load import load_model

SEEDS = range(30)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WISHBONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
def test_files_damaged_at_random_are_loaded_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 1.0)
    outcomes = [run_case(TARGETS[0], seed, tmp_path / "case") for seed in SEEDS]
    assert not [outcome for outcome in outcomes if outcome.is_finding]
    assert {outcome.kind for outcome in outcomes} == {"read", "refused"}


def test_the_header_says_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(sound().written())
    header = read_header(path)
    assert list(header.values) == [key for key, _, _ in sound().values]
    for key, kind, value in sound().values:
        expected = value[1] if kind == ARRAY else value
        assert header.values[key] == (pytest.approx(expected) if kind == F32 else expected), key
    assert [(tensor.name, list(tensor.shape)) for tensor in header.tensors] == [
        (name, dims) for name, dims, _, _, _ in sound().tensors
    ]
    assert sum(tensor.size for tensor in header.tensors) <= len(sound().weights)
    load_model(str(path), device="cpu")


def value(key: str, kind: int, content: object) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header.values = [entry for entry in header.values if entry[0] != key] + [(key, kind, content)]

    return change


def without(key: str) -> Callable[[Header], None]:
    return lambda header: header.values.__setitem__(slice(None), [e for e in header.values if e[0] != key])


def tensor(**changes: object) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        names = ("name", "dims", "kind", "offset", "claimed")
        first = dict(zip(names, header.tensors[0], strict=True)) | changes
        header.tensors[0] = tuple(first[name] for name in names)  # type: ignore[assignment]

    return change


def header(**changes: object) -> Callable[[Header], None]:
    return lambda header: [setattr(header, name, item) for name, item in changes.items()] and None


HUGE = 2**60
DAMAGE = {
    "not GGUF": (header(magic=b"GGML"), "does not begin with GGUF"),
    "big-endian": (header(version=3 << 24), "byte order is big-endian"),
    "a version to come": (header(version=9), "its version is 9"),
    "more values than bytes": (header(value_count=HUGE), f"ends before its {HUGE} values"),
    "more tensors than bytes": (header(tensor_count=HUGE), f"ends before its {HUGE} tensors"),
    "an array without an end": (value("x", ARRAY, (U8, [], HUGE)), f"ends before its {HUGE} numbers"),
    "texts without an end": (value("x", ARRAY, (STRING, [], HUGE)), f"ends before its {HUGE} texts"),
    "arrays in arrays": (value("x", ARRAY, (ARRAY, [(U8, [], None)], None)), "an array of type 9"),
    "an unknown type": (value("x", 77, b""), "a value of the unknown type 77"),
    "text that is no UTF-8": (value("x", STRING, b"\xff"), "is not UTF-8"),
    "a key twice": (lambda h: h.values.append(h.values[3]), "it has two values for"),
    "no architecture": (without("general.architecture"), "names no architecture"),
    "an alignment of 3": (value("general.alignment", U32, 3), "is not a power of two"),
    "a billion layers": (value("llama.block_count", U32, 10**9), "claims 1000000000 layers"),
    "a huge hidden size": (value("llama.embedding_length", U64, 2**40), "'llama.embedding_length' is 1099511627776"),
    "more dimensions than four": (tensor(dims=[1] * 5), "has 5 dimensions"),
    "a claim of dimensions": (tensor(claimed=2**31), "has 2147483648 dimensions"),
    "a tensor beyond the end": (tensor(dims=[2**40, 2**20]), "ends before the end of tensor"),
    "an offset beyond the end": (tensor(offset=HUGE), "ends before the end of tensor"),
    "a tensor of an unknown type": (tensor(kind=999), "of the unknown type 999"),
    "blocks that are not whole": (tensor(dims=[31, 2], kind=2), "not made of whole blocks"),
    "a tensor twice": (tensor(name="output_norm.weight"), "two tensors 'output_norm.weight'"),
    "no tokens": (without("tokenizer.ggml.tokens"), "it has no tokens"),
    "tokens that are numbers": (value("tokenizer.ggml.tokens", ARRAY, (I32, [1] * 320, None)), "not a list of texts"),
    "too few token types": (value("tokenizer.ggml.token_type", ARRAY, (I32, [1], None)), "and token_type has 1"),
    "no merges": (without("tokenizer.ggml.merges"), "no merges"),
    "a merge of what is not there": (value("tokenizer.ggml.merges", ARRAY, (STRING, ["\0 \0"], None)), "the merge"),
    "a token id beyond the end": (value("tokenizer.ggml.eos_token_id", U32, 10**6), "eos_token_id is 1000000"),
    "a start token that is text": (value("tokenizer.ggml.add_bos_token", STRING, "yes"), "neither true nor false"),
    "a chat template that is a number": (value("tokenizer.chat_template", U32, 7), "its chat template is no text"),
    "no heads": (value("llama.attention.head_count", U32, 0), "cannot be converted"),
    "an architecture of its own": (value("general.architecture", STRING, "newlm"), "cannot be converted"),
    "no layers said": (without("llama.block_count"), "describes a model of"),
    "parts": (value("split.count", U32, 3), "is one of 3 parts"),
    "parts that are text": (value("split.count", BOOL, True), ""),
}


@pytest.mark.parametrize(("change", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_a_lie_is_refused_at_once(change: Callable[[Header], None], problem: str, tmp_path: Path, cache: Path) -> None:
    changed = deepcopy(sound())
    change(changed)
    path = tmp_path / "m.gguf"
    path.write_bytes(changed.written())
    began = time.monotonic()
    if not problem:
        load_model(str(path), device="cpu")
        return
    with pytest.raises(RequestError) as error:
        load_model(str(path), device="cpu")
    assert problem in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert time.monotonic() - began < 20
    assert not [place for place in cache.iterdir() if place.is_dir()]


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    content = sound().written()
    path = tmp_path / "m.gguf"
    for size in [*range(0, 400, 7), *range(400, len(content), 4999)]:
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError):
            read_header(path)


def test_arrays_of_all_numbers_are_read(tmp_path: Path) -> None:
    changed = deepcopy(sound())
    wanted = {U8: [0, 255], I32: [-5, 2**31 - 1], U64: [2**64 - 1], F32: [0.5, -2.0], BOOL: [True, False]}
    for kind, items in wanted.items():
        changed.values.append((f"x.{kind}", ARRAY, (kind, items, None)))
    (tmp_path / "m.gguf").write_bytes(changed.written())
    values = read_header(tmp_path / "m.gguf").values
    assert {kind: values[f"x.{kind}"] for kind in wanted} == wanted


def test_a_file_that_does_not_fit_the_memory_is_planned_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(sound().written())
    monkeypatch.setattr(gguf, "BYTES_A_WEIGHT", 2**40)
    with pytest.raises(RequestError, match="GiB of memory to convert and"):
        load_model(str(path), device="cpu")


def test_a_fuzzed_header_is_what_llama_cpp_would_write(tmp_path: Path) -> None:
    """gguf's own reader, from llama.cpp, reads the same values."""
    from gguf import GGUFReader

    path = tmp_path / "m.gguf"
    path.write_bytes(sound().written())
    theirs = {key: part.contents() for key, part in GGUFReader(path).fields.items() if not key.startswith("GGUF.")}
    assert read_header(path).values == theirs
    assert struct.unpack("<I", path.read_bytes()[4:8]) == (3,)
