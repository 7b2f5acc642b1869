"""The longest pair that fits a memory limit.

A pair of length n is two sequences of n tokens each, the last quarter of them completion. One optimizer step on one
such pair either runs or runs out of memory. The search doubles n until it does, then bisects on a geometric scale. The
model stays loaded between attempts. If a failed attempt leaves memory behind or kills the process, the search goes on
in a new process, so that no attempt suffers from an earlier one.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.children import OUT_OF_MEMORY
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.results import Row
from benchmarks.harness.systems import parse_system
from benchmarks.harness.workloads import SIZES, long_pair, texts
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

MULTIPLE = 256
RESOLUTION = 1.06
LEFT_BEHIND_GIB = 0.25
MARGIN_SECONDS = 60
"""Part of a job's time that is kept for what comes before the search."""


def next_length(lower: int, upper: int | None, start: int, most: int) -> int | None:
    """Return the next length to try, or None when the search is over.

    Args:
        lower: longest length that fits; 0 for none.
        upper: shortest length known not to fit; None for none.
        start: first length to try.
        most: longest length to try.
    """
    multiple = min(MULTIPLE, start)
    if upper is None:
        following = start if lower == 0 else min(2 * lower, most)
        return following if following > lower else None
    if lower == 0:
        return upper // 2 if upper // 2 >= 8 else None
    middle = round((lower * upper) ** 0.5 / multiple) * multiple
    return middle if upper / lower > RESOLUTION and lower < middle < upper else None


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Search (in the child)."""
    from benchmarks.harness.loading import Origin, device_of, limit_memory, load

    deadline = time.monotonic() + request["search_seconds"]
    system = parse_system(request["system"])
    device = device_of(system)
    limit_memory(request["memory_gib"])
    progress.phase("loading the model")
    loaded = load(system, Origin(request["size"], request.get("directory")), device, request["most"] + 2)
    lower, upper = request.get("lower", 0), request.get("upper")
    attempts: list[Row] = request.get("attempts", [])
    at_rest = _held_gib(device)
    found: Row = {}
    while (length := next_length(lower, upper, request["start"], request["most"])) is not None:
        later = attempts[1:]  # the first one includes what is compiled and built once
        expected = 2 * max((a["seconds"] * (length / a["tokens"]) for a in later[-1:]), default=0.0)
        if time.monotonic() + expected > deadline:
            found["stopped_by"] = "time"
            break
        progress.phase(f"a pair of {length} tokens")
        ended: Row = {"tokens": length, "fits": False, "seconds": 0.0, "why": "it ended the process"}
        progress.write(partial={**found, "again": _again(lower, length, [*attempts, ended], deadline)})
        attempt = _attempt(system, request, device, loaded, length)
        attempts.append(attempt)
        lower, upper = (length, upper) if attempt["fits"] else (lower, length)
        found |= {"tokens": lower, "too_long": upper, "attempts": attempts}
        progress.write(partial=found)
        if not attempt["fits"] and _held_gib(device) > at_rest + LEFT_BEHIND_GIB:
            return found | {"again": _again(lower, upper, attempts, deadline)}
    found.setdefault("stopped_by", "most" if lower >= request["most"] else "resolution")
    return found


def _again(lower: int, upper: int | None, attempts: list[Row], deadline: float) -> Row:
    """Return what a new process needs to go on with the search."""
    seconds = max(deadline - time.monotonic(), 0)
    found = {"tokens": lower, "too_long": upper, "attempts": attempts}
    return {"lower": lower, "upper": upper, "attempts": attempts, "search_seconds": seconds, "found": found}


def _attempt(system: Any, request: Row, device: Any, loaded: Any, length: int) -> Row:
    """Run one optimizer step on one pair; return whether it fits, and its time and memory."""
    import gc
    import math

    import torch
    from peft import PeftModel

    from benchmarks.harness.clock import peak_gib
    from benchmarks.harness.loading import trainer_for

    rows = texts([long_pair(length)], SIZES[request["size"]].vocabulary)
    settings = {"per_device_train_batch_size": 1, "max_steps": 1, "max_length": length}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    fits, why = True, None
    trainer = None
    try:
        trainer = trainer_for(system, loaded, device, request["scratch"], rows, **settings)
        trainer.train()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        fits, why = False, str(error).splitlines()[0][:200]
    seconds = time.perf_counter() - begun
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] if trainer else []
    if fits and not (losses and math.isfinite(losses[-1])):
        raise RuntimeError(f"the loss of a pair of {length} tokens is {losses}")
    peaks = peak_gib()
    if trainer is not None and "peft_config" in loaded.options and isinstance(trainer.model, PeftModel):
        loaded.model = trainer.model.unload()
    elif "ref" in getattr(loaded.model, "peft_config", {}):
        loaded.model.delete_adapter("ref")
    del trainer
    loaded.model.zero_grad(set_to_none=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {"tokens": length, "fits": fits, "seconds": round(seconds, 2), "loss": losses[-1:], "why": why, **peaks}


def _out_of_memory(error: BaseException | None) -> bool:
    import torch

    while error is not None:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or OUT_OF_MEMORY.search(text):
            return True
        error = error.__cause__ or error.__context__
    return False


def _held_gib(device: Any) -> float:
    import torch

    return torch.cuda.memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def job(system: str, size: str, memory_gib: float, *, start: int, most: int, limit_seconds: float) -> Job:
    """Return the job of one system."""
    return Job(
        "longest",
        system,
        size,
        f"{memory_gib:g} GiB",
        {
            "memory_gib": memory_gib,
            "start": start,
            "most": most,
            "search_seconds": max(limit_seconds - MARGIN_SECONDS, limit_seconds / 2),
        },
        limit_seconds=limit_seconds,
        expected_seconds=limit_seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks longest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", required=True, help="systems, separated by commas")
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--memory-gib", type=float, default=24.0, help="limit of memory")
    parser.add_argument("--start", type=int, default=4096, help="the first length to try")
    parser.add_argument("--most", type=int, default=131_072, help="the longest length to try")
    parser.add_argument("--limit-seconds", type=float, default=300, help="time for one system")
    jobs.add_options(parser)
    options = parser.parse_args()
    limits = {"start": options.start, "most": options.most, "limit_seconds": options.limit_seconds}
    planned = [job(system, options.size, options.memory_gib, **limits) for system in options.systems.split(",")]
    show(run_jobs(planned, options), "longest")
