"""Hand a kernel over to threads and launch it afterwards, on a GPU that is not here; print what happened when.

The compiler is Triton's own; loading and launching are noted instead of done.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()

import torch
import triton
from attention_shared_memory import AbsentGpu
from triton import knobs

from wishbone.ops.compiled_ahead import handed_over, hands_over, launched
from wishbone.ops.low_rank_add.triton import add_low_rank_triton_

happened: list[tuple[str, str]] = []


class Launcher:
    def __init__(self, src: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(self, *_: Any) -> None:
        happened.append(("launched", self.name))


def load(name: str, *_: Any) -> tuple[Any, ...]:
    happened.append(("loaded", name))
    return name, name, 0, 0, 1024


class Noting(AbsentGpu):
    """A GPU that notes what is loaded and launched."""

    launcher_cls = Launcher
    utils = SimpleNamespace(
        load_binary=load,
        get_device_properties=lambda _: {"max_shared_mem": 232_448},
    )


def note_compilation(*, src: Any, cache_hit: bool, **_: Any) -> None:
    thread = "main" if threading.current_thread() is threading.main_thread() else "thread"
    happened.append(("found" if cache_hit else "compiled", f"{src.name} in {thread}"))


def part(name: str) -> None:
    told[name] = [" ".join(one) for one in happened]
    happened.clear()


def add(rank: int) -> None:
    y, low, factor = torch.zeros(32, 128), torch.zeros(32, rank), torch.zeros(rank, 128)
    add_low_rank_triton_(y.bfloat16(), low.bfloat16(), factor.bfloat16())


told: dict[str, Any] = {}
triton.runtime.driver.set_active(Noting(90))
knobs.compilation.listener = note_compilation
asked: list[str] = []


def own_hook(*, fn: Any, **_: Any) -> None:
    asked.append(fn.name)


knobs.runtime.jit_cache_hook = own_hook
with handed_over(torch.device("cpu")):
    add(16)
    add(16)
    told["launched within"] = any(what == "launched" for what, _ in happened)
    told["means nothing"] = hands_over()
    with launched():
        add(64)
    part("ignored")
add(16)  # waits
part("after")
deadline = time.monotonic() + 60
while knobs.runtime.jit_cache_hook is not own_hook and time.monotonic() < deadline:
    time.sleep(0.01)
told["hook is back"] = knobs.runtime.jit_cache_hook is own_hook
told["asked"] = len(asked)
add(16)
part("again")
told["outside"] = hands_over()
print(json.dumps(told))
