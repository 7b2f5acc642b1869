"""Pairs a second and peak memory of training steps, for systems side by side.

Each system trains on the same pairs in the same order, in a process of its own: random weights in the shape of a real
model, LoRA of rank 16 on all seven linear layers. The first steps warm up; the others are timed, and the clock waits
for the device. A process that fails or takes too long becomes a row with the reason.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.results import Row
from benchmarks.harness.systems import System, parse_system
from benchmarks.harness.workloads import SIZES, Case, useful_flop
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

WARM_UP, TIMED = 3, 8


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Train and measure (in the child)."""
    system = parse_system(request["system"])
    if not system.warm_store:
        return _train(system, request, progress)
    progress.phase("filling the reference store")
    _train(system, request, progress)
    return _train(system, request, progress)


def _train(system: System, request: dict[str, Any], progress: Progress) -> Row:
    from benchmarks.harness.loading import Loaded, Origin, load
    from benchmarks.harness.timed_training import timed_training

    size = SIZES[request["size"]]

    def loaded(device: Any) -> Loaded:
        return load(system, Origin(request["size"], request.get("directory")), device)

    trained = timed_training(system, loaded, request, progress, Case.parse(request["case"]), size.vocabulary)
    flop = useful_flop(size, trained.lengths, reference_stored=system.warm_store)
    return trained.row | {"useful_tflops": round(flop / trained.seconds / 1e12, 3)}


def job(
    system: str,
    case: str,
    size: str,
    warm_up: int = WARM_UP,
    timed: int = TIMED,
    *,
    watch: bool = False,
    planned_steps: int = 0,
    **options: Any,
) -> Job:
    """Return the job of one row; ValueError for a system or case that does not exist."""
    parse_system(system)
    settings: dict[str, Any] = {"warm_up": warm_up, "timed": timed, "watch": watch}
    if planned_steps:
        settings["planned_steps"] = planned_steps
    return Job("throughput", system, size, str(Case.parse(case)), settings, **options)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--systems", required=True, help="systems, separated by commas")
    parser.add_argument("--cases", default="ultrafeedback:8", help="WORKLOAD[:BATCH[xACCUMULATION]], by commas")
    parser.add_argument("--size", choices=SIZES, default="8b", help="shape of the random model")
    jobs.add_step_options(parser, WARM_UP, TIMED)
    jobs.add_watch(parser)
    parser.add_argument(
        "--planned-steps", type=int, default=0, help="steps that the trainer is told to do; it is stopped before"
    )
    parser.add_argument("--limit-seconds", type=float, default=300, help="time for one row")
    jobs.add_options(parser)
    options = parser.parse_args()
    try:
        planned = [
            job(
                system,
                case,
                options.size,
                options.warm_up,
                options.timed,
                watch=options.watch,
                planned_steps=options.planned_steps,
                limit_seconds=options.limit_seconds,
            )
            for case in options.cases.split(",")
            for system in options.systems.split(",")
        ]
    except ValueError as error:
        parser.error(str(error))
    show(run_jobs(planned, options), "throughput")
