"""The first training step, part by part, with empty caches of kernels and with full ones.

Each row is a process of its own: seconds until its libraries are imported, until the model is in memory, and from the
trainer's call to the end of the first step, with the parts of that and the kernels that were compiled meanwhile. What
is on the way to a step, such as loading a model, is not part of a first step's seconds.

    empty                    kernels are compiled ahead, by threads
    empty, at first launch   each kernel is compiled where it is first launched
    full                     the caches that `empty` has left

Losses of the steps and the adapter after them are compared bit by bit.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.results import Row
from benchmarks.harness.systems import parse_system
from benchmarks.harness.workloads import SIZES, Case, draw_lengths, texts
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

EMPTY, AT_LAUNCH, FULL = "empty", "empty, at first launch", "full"
CACHES = (EMPTY, AT_LAUNCH, FULL)


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Train a few steps and say what came before the end of the first (in the child)."""
    from benchmarks.harness.clock import Clock, now
    from benchmarks.harness.first_step_parts import Kernels, Parts, digest, without_threads
    from benchmarks.harness.loading import Origin, device_of, load, trainer_for
    from wishbone.trainer.start_check import uncached

    system, size = parse_system(request["system"]), SIZES[request["size"]]
    case, steps = Case.parse(request["workload"]), request["steps"]
    if request["cache"] == AT_LAUNCH:
        without_threads()
    rows = texts(draw_lengths(case.workload, case.pairs_a_step * steps), size.vocabulary)
    progress.phase("loading the model")
    begun = time.perf_counter()
    loaded = load(system, Origin(request["size"], request.get("directory")), device_of(system))
    ready = now()
    clock, kernels = Clock(steps, progress), Kernels()
    progress.phase("preparing the trainer")
    with kernels.counted(), Parts() as parts:
        trainer = trainer_for(
            system,
            loaded,
            device_of(system),
            request["scratch"],
            rows,
            callbacks=[clock],
            per_device_train_batch_size=case.batch,
            gradient_accumulation_steps=case.accumulation,
            max_steps=steps,
        )
        made = now()
        trainer.train()
    return {
        "load_seconds": round(ready - begun, 2),
        "first_step_seconds": round(clock.first_step_done - ready, 2),
        "trainer_seconds": round(made - ready, 2),
        "parts": parts.since(ready),
        "kernels": kernels.summary(),
        "compiled_at_start": clock.compiled_at_start,
        "losses": [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        "adapter": digest(p for p in trainer.model.parameters() if p.requires_grad),
        "one_pass": getattr(uncached(trainer.preference_step), "in_lockstep", False),
    }


def job(system: str, case: str, size: str, cache: str, steps: int, limit_seconds: float) -> Job:
    """Return the job of one row; ValueError for a system or case that does not exist."""
    parse_system(system)
    settings = {"workload": str(Case.parse(case)), "cache": cache, "steps": steps}
    kept = f"{system} {case} {AT_LAUNCH if cache == AT_LAUNCH else EMPTY}"
    return Job(
        "first_step", system, size, f"{case}, {cache}", settings, limit_seconds, expected_seconds=45, caches=kept
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks first-step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--systems", default="wishbone-fp8:in_place=True", help="Wishbone's systems, by commas")
    parser.add_argument("--case", default="ultrafeedback:8", help="WORKLOAD[:BATCH[xACCUMULATION]]")
    parser.add_argument("--size", choices=SIZES, default="8b", help="shape of the random model")
    parser.add_argument("--steps", type=int, default=2, help="steps whose losses are compared")
    parser.add_argument("--caches", type=int, choices=(1, 2, 3), default=3, help="how many of the rows above")
    parser.add_argument("--limit-seconds", type=float, default=200, help="time for one row")
    jobs.add_options(parser)
    options = parser.parse_args()
    try:
        planned = [
            job(system, options.case, options.size, cache, options.steps, options.limit_seconds)
            for system in options.systems.split(",")
            for cache in CACHES[: options.caches]
        ]
    except ValueError as error:
        parser.error(str(error))
    show(run_jobs(planned, options), "first_step")
