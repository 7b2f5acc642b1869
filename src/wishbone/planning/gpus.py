"""GPUs by name: memory, arithmetic and bandwidth of a GPU, whether or not it is in this machine.

`gpus.json` has for each GPU the memory that the driver reports (GiB), its compute capability, the peak rate of its
matrix units without sparsity and with sums in float32 (TFLOP/s; null where it lacks the format), the bandwidth of its
memory (GB/s), what was measured on one, and the source of the figures. Names are compared without case, punctuation and
the words that drivers put around them, so `NVIDIA GeForce RTX 4090` and `rtx4090` are the same.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from wishbone.config.document import show
from wishbone.errors import RequestError

BF16_FROM, FP8_FROM = 8.0, 8.9
"""Lowest compute capabilities with arithmetic in these formats."""

GPUS = Path(__file__).with_name("gpus.json")
NEAR = 0.5
"""How alike two names must be, from 0 to 1, for one to be suggested for the other."""

SAID_AROUND = frozenset(
    {"nvidia", "geforce", "rtx", "tesla", "quadro", "graphics", "gpu", "generation", "edition", "workstation", "server"}
)
"""Words of drivers and shops that do not tell two GPUs apart."""

FORM = re.compile(r"\d+gb|sxm|pcie")
"""Words that a name may have beyond what it needs."""


@dataclass(frozen=True)
class Measured:
    """Rates measured on a GPU, in TFLOP/s, and where they are recorded."""

    bf16_tflops: float
    fp8_tflops: float | None
    source: str


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU; fields as in this module's docstring."""

    name: str
    memory_gib: float
    capability: float
    bf16_tflops: float | None
    fp8_tflops: float | None
    fp16_tflops: float | None
    bandwidth_gbs: float
    measured: Measured | None
    source: str


@cache
def known_gpus() -> dict[str, Gpu]:
    """Return all GPUs by name, in the order of the file."""
    found: dict[str, Any] = json.loads(GPUS.read_text(encoding="utf-8"))
    return {
        name: Gpu(name, **{**fields, "measured": Measured(**fields["measured"]) if fields["measured"] else None})
        for name, fields in found.items()
    }


def find_gpu(name: str) -> Gpu:
    """Return the GPU of that name, as a person or a driver writes it.

    Raises:
        RequestError: there is none, or several; the message names the nearest ones.
    """
    asked = _words(name)
    gpus = [(_words(known), gpu) for known, gpu in known_gpus().items()]
    same = [gpu for words, gpu in gpus if words == asked]
    longer = [gpu for words, gpu in gpus if asked and words > asked and all(map(FORM.fullmatch, words - asked))]
    shorter = [gpu for words, gpu in gpus if words < asked and all(map(FORM.fullmatch, asked - words))]
    found = same or longer or shorter
    if len(found) == 1:
        return found[0]
    names = {known.lower(): known for known in known_gpus()}
    near = [gpu.name for gpu in found] or [names[n] for n in get_close_matches(name.lower(), names, cutoff=NEAR)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known_gpus())}."
    raise RequestError(f"{show(name)} is not the name of one known GPU; {hint}")


def _words(name: str) -> frozenset[str]:
    """The words that tell a GPU from others."""
    text = re.sub(r"(\d)(ti|super)", r"\1 \2", name.lower().replace("rtx", "rtx ").replace("hbm3", "sxm"))
    words = (re.sub(r"^sxm\d", "sxm", word) for word in re.findall(r"[a-z0-9]+", text))
    return frozenset(word for word in words if word not in SAID_AROUND)
