"""Hand kernels over to threads and launch them afterwards, on a GPU that is not here; print what happened when.

The compiler is Triton's own; loading and launching are noted instead of done. At the end the interpreter ends while
kernels are left to be compiled.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()

import torch
import triton
from attention_shared_memory import AbsentGpu
from triton import knobs

from wishbone.ops import compiled_ahead
from wishbone.ops.compiled_ahead import handed_over, hands_over, launched
from wishbone.ops.low_rank_add.triton import add_low_rank_triton_

happened: list[tuple[str, str]] = []
told: dict[str, Any] = {}
asked: list[str] = []


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

    def set_current_device(self, device: int) -> None:
        assert device == 0


def note_compilation(*, src: Any, cache_hit: bool, **_: Any) -> None:
    thread = "main" if threading.current_thread() is threading.main_thread() else "thread"
    happened.append(("found" if cache_hit else "compiled", f"{src.name} in {thread}"))


def part(name: str) -> None:
    told[name] = [" ".join(one) for one in happened]
    happened.clear()


def own_hook(*, fn: Any, **_: Any) -> None:
    asked.append(fn.name)


def until_all_is_loaded() -> bool:
    deadline = time.monotonic() + 60
    while knobs.runtime.jit_cache_hook is not own_hook and time.monotonic() < deadline:
        time.sleep(0.01)
    return knobs.runtime.jit_cache_hook is own_hook


def module_of(name: str) -> Any:
    """The synthetic kernels as a module of this name."""
    path = Path(__file__).with_name("made_up_kernels.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def add(rank: int) -> None:
    y, low, factor = torch.zeros(32, 128), torch.zeros(32, rank), torch.zeros(rank, 128)
    add_low_rank_triton_(y.bfloat16(), low.bfloat16(), factor.bfloat16())


def a_pass_and_what_comes_after() -> None:
    with handed_over():
        add(16)
        add(16)
        told["launched within"] = any(what == "launched" for what, _ in happened)
        told["means nothing"] = hands_over()
        told["one thread"] = not torch._C._is_multithreading_enabled()
        with launched():
            add(64)
        other = threading.Thread(target=add, args=(64,))
        other.start()
        other.join()
        part("within")
    add(16)
    part("after")
    told["hook is back"] = until_all_is_loaded()
    told["asked"] = len(asked)
    add(16)
    part("again")
    told["outside"] = hands_over()


def kernels_that_are_hard() -> None:
    ours, theirs = module_of("wishbone.made_up"), module_of("other.made_up")
    with handed_over():
        theirs.of_size[(1,)](x, 64)
        part("of others")
        ours.told_by_name[(1,)](x, "fp32")
        ours.impossible[(1,)](x)
    told["hard ones are over"] = until_all_is_loaded()
    part("hard")
    told["right constant"] = "1.000000e+00" in ours.told_by_name[(1,)](x, "fp32").asm["ttir"]
    try:
        ours.impossible[(1,)](x)
    except triton.CompilationError as error:
        told["fails at launch"] = "not this one" in str(error)
    happened.clear()


def kernels_that_no_thread_has_begun() -> None:
    ours = module_of("wishbone.made_up")
    compiled_ahead.THREADS = 1
    with handed_over():
        for power in range(5, 12):
            ours.of_size[(1,)](x, 2**power)
    ours.of_size[(1,)](x, 2**11)
    told["in this thread"] = ("compiled", "of_size in main") in happened
    process = os.fork()
    if process == 0:
        ours.of_size[(1,)](x, 2**10)
        os._exit(0)
    told["a forked process goes on"] = os.waitpid(process, 0)[1] == 0


x = torch.zeros(4096)
triton.runtime.driver.set_active(Noting(90))
knobs.compilation.listener = note_compilation
knobs.runtime.jit_cache_hook = own_hook
a_pass_and_what_comes_after()
kernels_that_are_hard()
kernels_that_no_thread_has_begun()
print(json.dumps(told), flush=True)
knobs.compilation.listener = lambda *, src, **_: print("compiled", src.name, flush=True)
