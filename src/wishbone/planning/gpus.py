"""GPUs by name: memory, arithmetic and bandwidth of a GPU, whether or not it is in this machine.

`gpus.json` has for each GPU the memory that the driver reports (GiB), its compute capability, the peak rate of its
matrix units without sparsity and with sums in float32, of int8 in int32 (TFLOP/s; null where it lacks the format), the
bandwidth of its memory (GB/s), what was measured on one, and the source of the figures. Names are compared without
case, punctuation and the words that drivers put around them, so `NVIDIA GeForce RTX 4090` and `rtx4090` are the same.

People also write less than a name: `H100` has two forms, `A100` two sizes, `RTX 40` is a series. Such a name is taken
for the smallest GPU that it may be, because what fits there fits the others, and one sentence says so. Who knows the
memory alone writes that, `24GB`: it is taken for the smallest and oldest of the GPUs that are sold with it and compute
in bfloat16, so that the settings work on each of them.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from wishbone.config.document import show
from wishbone.errors import RequestError

BF16_FROM, FP8_FROM, INT8_FROM = 8.0, 8.9, 7.5
"""Lowest compute capabilities with arithmetic in these formats."""
MUCH_FASTER = 1.5
"""From how many times FP8's rate on int8 is chosen; GeForce cards halve FP8 products that are summed in float32."""

GPUS = Path(__file__).with_name("gpus.json")
NEAR = 0.5
"""How alike two names must be, from 0 to 1, for one to be suggested for the other."""

SAID_AROUND = frozenset(
    {"nvidia", "geforce", "rtx", "tesla", "quadro", "graphics", "gpu", "generation", "edition", "workstation", "server",
     "series", "blackwell"}
)  # fmt: skip
"""Words of drivers and shops that do not tell two GPUs apart."""

FORM = re.compile(r"\d+gb|sxm|pcie")
"""Words that a name may have beyond what it needs."""

SIZE = re.compile(r"\d+gb")
"""Words among them that exclude each other."""

SPELLED = r"\b([0-9]{1,3})[ -]?gi?b?\b"
"""Sizes as people write them: `80 GB`, `80GiB`, `80g`."""

SIGNED = re.compile(r"(?:^[^a-z0-9 (]+ ?| [^a-z0-9 (]+)[0-9]")
"""A number behind a sign, a point or another mark, in lower case: `-4gb`, `.24gb`, `~24gb`, `a -4gb card`."""

MEMORY = re.compile(r"(?:an? |nvidia |gpu )*(\d{1,3}) ?g(?:i?b)?(?: of)?(?: v?ram| memory| gpu| card)?")
"""A GPU by its memory alone, as lower-case words."""

SOLD = (4, 6, 8, 10, 11, 12, 16, 24, 32, 40, 48, 80, 94, 96, 141, 192, 288)
"""GB that GPUs are sold with; drivers report up to 7 % less."""

SERIES = re.compile(r"[2-5]0")
"""What a series of GeForce cards is called: the beginning of the numbers of its cards."""

COUNTED = re.compile(r"([0-9]{1,3})(?: ?x ?| )([a-z].*)|(.*[a-z0-9]) ?(?<![rt])x ?([0-9]{1,3})")
"""Several GPUs of one kind: `2x H100`, `8 A100`, `H200x8`, as lower-case words."""

NOT_SUPPORTED = (
    (r"(?:amd|radeon|instinct)\b.*|mi ?[0-9]{2,3}[a-z]?|rx ?[0-9]{3,4}.*", "an AMD GPU"),
    (r"(?:apple|mac|macbook)\b.*|m[1-9]( pro| max| ultra)?|mps", "Apple silicon"),
    (r"intel\b.*|arc .*|gaudi ?[0-9]?|max 1[0-9]{3}", "an Intel accelerator"),
    (r"(google )?tpu.*", "a TPU"),
    (r"(aws )?(trainium|inferentia).*", "an AWS accelerator"),
)
"""Names that are known and cannot be trained on yet, as lower-case words, and what they are."""


@dataclass(frozen=True)
class Measured:
    """Rates measured on a GPU, in TFLOP/s, and where they are recorded."""

    bf16_tflops: float
    fp8_tflops: float | None
    int8_tflops: float | None
    source: str


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU; fields as in this module's docstring."""

    name: str
    memory_gib: float
    capability: float
    bf16_tflops: float | None
    fp8_tflops: float | None
    int8_tflops: float | None
    fp16_tflops: float | None
    bandwidth_gbs: float
    measured: Measured | None
    source: str

    @property
    def int8_over_fp8(self) -> float:
        """How many times the published int8 rate is that of FP8, to hundredths; 0 without both."""
        if self.int8_tflops is None or self.fp8_tflops is None:
            return 0.0
        return math.floor(100 * self.int8_tflops / self.fp8_tflops + 0.5) / 100

    @property
    def eight_bits(self) -> Literal["fp8", "int8"] | None:
        """The form of 8 bits to choose on it: int8 where its products are much faster than FP8's, or alone."""
        if self.capability < INT8_FROM:
            return None
        return "fp8" if self.capability >= FP8_FROM and self.int8_over_fp8 < MUCH_FASTER else "int8"

    @classmethod
    def unlisted(cls, name: str, memory_gib: float, capability: tuple[int, int]) -> Gpu:
        """Return a GPU of this machine that the list does not have: without rates no time is planned."""
        major, minor = capability
        return cls(
            name,
            memory_gib,
            major + minor / 10,
            bf16_tflops=None,
            fp8_tflops=None,
            int8_tflops=None,
            fp16_tflops=None,
            bandwidth_gbs=0.0,
            measured=None,
            source="this machine",
        )


@cache
def known_gpus() -> dict[str, Gpu]:
    """Return all GPUs by name, in the order of the file."""
    found: dict[str, Any] = json.loads(GPUS.read_text(encoding="utf-8"))
    return {
        name: Gpu(name, **{**fields, "measured": Measured(**fields["measured"]) if fields["measured"] else None})
        for name, fields in found.items()
    }


def find_gpu(name: str, memory_gib: float | None = None) -> Gpu:
    """Return the GPU of that name, as a person or a driver writes it; of several, the smallest.

    Args:
        name: of the GPU.
        memory_gib: what it has, where that is known; of several, the nearest is taken.

    Raises:
        RequestError: none is known by this name; the message names the nearest ones, or says that it is not supported.
    """
    if found := _of_memory(name):
        return min(found, key=lambda gpu: (_whole(gpu), gpu.capability, gpu.memory_gib, gpu.bandwidth_gbs))
    wanted = 0.0 if memory_gib is None else memory_gib
    return min(_meant(name), key=lambda gpu: (abs(gpu.memory_gib - wanted), gpu.bandwidth_gbs))


def assumed_gpu(name: str) -> str | None:
    """Return a sentence that says which GPU a name was taken for, or None where only one is meant.

    Raises:
        RequestError: as `find_gpu`.
    """
    sized = _of_memory(name)
    taken = find_gpu(name).name
    others = [gpu.name for gpu in sized or _meant(name) if gpu.name != taken]
    if sized:
        more = f", the smallest and oldest of {len(sized)} ({', '.join(others)})" if others else ""
        return f"{show(name)} is taken for {taken}{more}; settings and times are its own, so name yours if you can"
    if not others:
        return None
    also = " or ".join([", ".join(others[:-1]), others[-1]] if others[1:] else others)
    return f"{show(name)} is taken for {taken}, the smallest that it may be; it may also be {also}"


def _of_memory(name: str) -> list[Gpu]:
    """The GPUs that are meant by their memory alone, none where the name says more.

    Raises:
        RequestError: no known GPU has that memory, or a number stands behind a sign.
    """
    if SIGNED.search(name.lower()):
        raise RequestError(
            f"{show(name)} is no GPU and no memory of one; write a name, such as RTX 4090, or a memory, such as 24GB"
        )
    asked = MEMORY.fullmatch(_written(name))
    if asked is None:
        return []
    found = [gpu for gpu in known_gpus().values() if int(asked[1]) in (_sold(gpu), _whole(gpu))]
    if not found:
        raise RequestError(
            f"{show(name)} is the memory of no known GPU; known are {', '.join(map(str, SOLD))} GB. Name the GPU, or "
            "the next smaller memory"
        )
    return [gpu for gpu in found if gpu.capability >= BF16_FROM] or found


def _sold(gpu: Gpu) -> int:
    """GB that a GPU is sold with."""
    return next(size for size in SOLD if size >= gpu.memory_gib)


def _whole(gpu: Gpu) -> int:
    """GiB of a GPU, rounded."""
    return math.floor(gpu.memory_gib + 0.5)


def _written(name: str) -> str:
    """The words of a name, in lower case."""
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def _meant(name: str) -> list[Gpu]:
    """The GPUs that a name may mean, one at least."""
    written = _written(name)
    count, one = _counted(written)
    if count == 1:
        return _meant(one)
    for pattern, what in NOT_SUPPORTED:
        if re.fullmatch(pattern, one):
            raise RequestError(
                f"{show(name)} is {what}, which is known and not supported yet: Wishbone trains on NVIDIA GPUs and on "
                "processors. Name one of those GPUs, or none"
            )
    asked = _words(name)
    gpus = [(_words(known), gpu) for known, gpu in known_gpus().items()]
    same = [gpu for words, gpu in gpus if words == asked]
    longer = [gpu for words, gpu in gpus if asked and words > asked and all(map(FORM.fullmatch, words - asked))]
    shorter = [gpu for words, gpu in gpus if words < asked and all(map(FORM.fullmatch, asked - words))]
    alike = [gpu for words, gpu in gpus if _is_alike(words, asked)]
    series = [gpu for words, gpu in gpus if "rtx" in written and _is_in_series(words, asked)]
    found = same or longer or shorter or alike or series
    if found:
        return found
    names = {known.lower(): known for known in known_gpus()}
    near = [names[n] for n in get_close_matches(name.lower(), names, cutoff=NEAR)]
    if one != written and _is_known(one):
        raise RequestError(
            f"{show(name)} is {count} GPUs; name one of them, {show(one)}, and say how many there are with --gpus "
            f"{count}"
        )
    near = [f"{written}GB"] if written.isdecimal() and int(written) in SOLD else near
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known_gpus())}."
    hint += " Of another GPU write the memory, such as 24GB"
    raise RequestError(f"{show(name)} is not the name of one known GPU; {hint}")


def _counted(written: str) -> tuple[int | None, str]:
    """How many GPUs the words of a name count, and the words for one; of words that count none: None, and all."""
    found = COUNTED.fullmatch(written)
    if found is None:
        return None, written
    return int(found[1] or found[4]), found[2] or found[3]


def _is_known(name: str) -> bool:
    try:
        return bool(_meant(name))
    except RequestError:
        return False


def _is_alike(words: frozenset[str], asked: frozenset[str]) -> bool:
    """Whether two names differ only in words for a form, and not in two sizes."""
    own, other = (frozenset(word for word in one if not FORM.fullmatch(word)) for one in (words, asked))
    sizes = [{word for word in one if SIZE.fullmatch(word)} for one in (words, asked)]
    return bool(own) and own == other and (not sizes[0] or not sizes[1] or sizes[0] == sizes[1])


def _is_in_series(words: frozenset[str], asked: frozenset[str]) -> bool:
    """Whether a card's number begins with that of the series that was asked for."""
    beginnings = [word for word in asked if SERIES.fullmatch(word)]
    if len(beginnings) != 1 or asked - {beginnings[0], "laptop"}:
        return False
    numbered = any(re.fullmatch(beginnings[0] + r"\d{2}", word) for word in words)
    return numbered and ("laptop" in words) == ("laptop" in asked)


def _words(name: str) -> frozenset[str]:
    """The words that tell a GPU from others."""
    text = re.sub(SPELLED, r"\1gb", name.lower())
    text = re.sub(r"(\d)(ti|super)", r"\1 \2", text.replace("rtx", "rtx ").replace("hbm3", "sxm"))
    words = (re.sub(r"^sxm\d", "sxm", word) for word in re.findall(r"[a-z0-9]+", text))
    return frozenset(word for word in words if word not in SAID_AROUND)
