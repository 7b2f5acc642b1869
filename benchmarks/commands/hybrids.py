"""Hybrids of attention and recurrent layers, with random weights of a known model's shape, beside TRL.

    python -m benchmarks hybrids --rows lfm2-2.6b,wishbone-recompute,capybara:8 lfm2-2.6b,trl-bf16,capybara:2x4,1+2

A row is SHAPE,SYSTEM,WORKLOAD[:BATCH[xACCUMULATION]][,WARM_UP+TIMED]; without `--rows`, every shape runs both workloads
in four systems. Each trains with LoRA of rank 16 on all linear layers, in a process of its own. `wishbone-plain`
computes each prompt twice, in the same rows with the same kernels; `wishbone-torch-scans` runs the recurrences in
PyTorch, as TRL does where no library has kernels for this GPU. A row's result says how many recurrent layers start
branches from their stem's state, and why others do not. With `--look`, it also says where the host was while rows were
recorded as CUDA graphs.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.results import Row
from benchmarks.harness.shaped_training import TINY_CASE, add_options, shaped_job, train_shape
from benchmarks.harness.shapes import HYBRIDS
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

SYSTEMS = ("wishbone-bf16", "wishbone-recompute", "wishbone-plain", "trl-bf16")
WORKLOADS = ("ultrafeedback:8", "capybara:8")


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Train and measure (in the child)."""
    where: Row = {}
    with noting_the_host(where) if request["look"] else nullcontext():
        trained = train_shape(request, progress)
    step = getattr(trained.trainer, "preference_step", None)
    if step is None:
        return trained.row
    recurrence, graphs = step.policy.recurrence, trained.trainer.execution.graphs
    return trained.row | {
        "recurrent_layers": len(recurrence.covered),
        "other_recurrent_layers": recurrence.left,
        "recorded_lengths": [] if graphs is None else graphs.lengths,
        "replays": 0 if graphs is None else graphs.replays,
        **where,
    }


@contextmanager
def noting_the_host(where: Row) -> Iterator[None]:
    """Context that adds the shares of the time in which functions were running while rows were recorded."""
    from benchmarks.harness.step_work import Sampler
    from wishbone.phases import Phase, listening

    class Listener:
        sampler: Sampler | None = None

        def began(self, phase: Phase) -> None:
            if phase.name == "recording":
                self.sampler = Sampler()

        def moved(self, phase: Phase) -> None:
            """Nothing is counted."""

        def ended(self, phase: Phase) -> None:
            if phase.name == "recording" and self.sampler is not None:
                where["host_while_recording"] = self.sampler.shares()

    with listening(Listener()):
        yield


def job(row: str, options: argparse.Namespace) -> Job:
    """Return the job of a row; ValueError for one that does not exist."""
    shape, system, case, *steps = row.split(",")
    if shape not in HYBRIDS:
        raise ValueError(f"shape {shape!r} is not known: choose one of {', '.join(HYBRIDS)}")
    if steps:
        warm_up, timed = map(int, steps[0].split("+"))
        options = argparse.Namespace(**vars(options) | {"warm_up": warm_up, "timed": timed})
    case = TINY_CASE if options.tiny else case
    return shaped_job("hybrids", system, shape, case, case, options)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hybrids", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = [",".join(parts) for parts in itertools.product(HYBRIDS, SYSTEMS, WORKLOADS)]
    parser.add_argument("--rows", nargs="+", default=everything, metavar="ROW", help="in this order")
    add_options(parser)
    jobs.add_options(parser)
    options = parser.parse_args()
    try:
        planned = [job(row, options) for row in options.rows]
    except ValueError as error:
        parser.error(str(error))
    show(run_jobs(planned, options), "hybrids")
