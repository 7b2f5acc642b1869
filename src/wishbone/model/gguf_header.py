"""The header of a GGUF file, read without trusting it.

    magic "GGUF" | version u32 | tensors u64 | values u64
    values times:   key | type u32 | value               a string is its length u64 and its bytes in UTF-8;
    tensors times:  name | dimensions u32, u64 each | type u32 | offset u64      an array: type u32, length u64, items
    padding to the alignment | data of the tensors

Every length is compared with what is left of the file before anything of that length is read, so a header of lies ends
in a refusal, at once, and takes no more memory than the file. Sizes that the metadata claims are compared with the
weights that are there: a model of a billion layers in a file of a megabyte is refused before it is built.
Source: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from wishbone.errors import counted

VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
ALIGNMENT = 32
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_SMALLEST_VALUE, _SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8
_POSITIONS = "context_length"


class DamagedError(ValueError):
    """The file is not a whole GGUF file; the message says what is wrong."""


@dataclass(frozen=True)
class GgufTensor:
    """Name, shape (innermost dimension first), number of elements and bytes of one tensor."""

    name: str
    shape: tuple[int, ...]
    elements: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """Key-value pairs and tensors of a file."""

    values: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def elements(self) -> int:
        """Weights in the file."""
        return sum(tensor.elements for tensor in self.tensors)


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        DamagedError: the file is not a whole GGUF file, or claims a model that its weights are too few for.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if not file.read(1):
            raise DamagedError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = _Reader(content).header()
    _refuse_claims(header)
    return header


class _Reader:
    """Reads a header from its start; `place` is the byte that comes next."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.place, self.end = content, 0, len(content)

    def header(self) -> GgufHeader:
        if self.take(4) != b"GGUF":
            raise DamagedError("it does not begin with GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS
            raise DamagedError("its byte order is big-endian" if swapped else f"its version is {version}")
        tensors, values = self.number("Q"), self.number("Q")
        self.fits(values, _SMALLEST_VALUE, "values")
        self.fits(tensors, _SMALLEST_TENSOR, "tensors")
        metadata: dict[str, Any] = {}
        for _ in range(values):
            key = self.string()
            if key in metadata:
                raise DamagedError(f"it has two values for {key!r:.80}")
            metadata[key] = self.value(self.number("I"))
        return GgufHeader(metadata, self.tensors(tensors, metadata.get("general.alignment", ALIGNMENT)))

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if size > self.end - self.place:
            raise DamagedError(f"it ends where {size} more bytes belong")
        self.place += size
        return self.content[self.place - size : self.place]

    def number(self, kind: str) -> Any:
        """The next number, of a format of `struct`."""
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def fits(self, count: int, smallest: int, what: str) -> None:
        """Refuse a count of items that each take at least this many bytes, if the file is too short for them."""
        if count * smallest > self.end - self.place:
            raise DamagedError(f"it ends before its {count} {what}")

    def string(self) -> str:
        """The next string."""
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise DamagedError(f"the text before byte {self.place} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """The next value, of a type of GGUF."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        if kind not in _SCALARS:
            raise DamagedError(f"it has a value of the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def array(self, kind: int, count: int) -> list[Any]:
        """The items of an array."""
        if kind == _STRING:
            self.fits(count, 8, "texts")
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise DamagedError(f"it has an array of type {kind}")
        size = struct.calcsize(f"<{_SCALARS[kind]}")
        self.fits(count, size, "numbers")
        return list(struct.unpack(f"<{count}{_SCALARS[kind]}", self.take(count * size)))

    def tensors(self, count: int, alignment: Any) -> tuple[GgufTensor, ...]:
        """The descriptions of the tensors, each of which must lie within the file."""
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise DamagedError(f"its alignment {alignment!r:.40} is not a power of two")
        found: dict[str, tuple[GgufTensor, int]] = {}
        for _ in range(count):
            tensor, offset = self.tensor()
            if tensor.name in found:
                raise DamagedError(f"it has two tensors {tensor.name!r:.80}")
            found[tensor.name] = tensor, offset
        start = -(-self.place // alignment) * alignment
        for tensor, offset in found.values():
            if start + offset + tensor.size > self.end:
                raise DamagedError(f"it ends before the end of tensor {tensor.name!r:.80}")
        return tuple(tensor for tensor, _ in found.values())

    def tensor(self) -> tuple[GgufTensor, int]:
        """The description of one tensor, and its offset."""
        name, dimensions = self.string(), self.number("I")
        if dimensions > MOST_DIMENSIONS:
            raise DamagedError(f"tensor {name!r:.80} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        kind, offset = self.number("I"), self.number("Q")
        if kind not in set(GGMLQuantizationType):
            raise DamagedError(f"tensor {name!r:.80} is of the unknown type {kind}")
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        elements = math.prod(shape)
        if elements % block or (shape and shape[0] % block):
            raise DamagedError(f"tensor {name!r:.80} is not made of whole blocks of {block}")
        return GgufTensor(name, shape, elements, elements // block * size), offset


def _refuse_claims(header: GgufHeader) -> None:
    """Refuse sizes of the architecture that the weights in the file are too few for."""
    architecture = header.values.get("general.architecture")
    if not isinstance(architecture, str):
        raise DamagedError("it names no architecture")
    layers = header.values.get(f"{architecture}.block_count", 0)
    if not isinstance(layers, int) or layers > len(header.tensors):
        raise DamagedError(f"it claims {layers!r:.40} layers and has {counted(len(header.tensors), 'tensor')}")
    for key, value in header.values.items():
        claims = value if isinstance(value, list) else [value]
        if not key.startswith(f"{architecture}.") or key.endswith(_POSITIONS):
            continue
        largest = max((claim for claim in claims if isinstance(claim, int)), default=0)
        if largest > header.elements:
            raise DamagedError(f"its {key!r:.80} is {largest}, and it has {header.elements} weights")
