"""Steps of mixtures of experts, with random weights of a known model's shape, beside TRL.

    python -m benchmarks mixtures --stages attention:bf16:wishbone attention:bf16:trl experts:nf4:wishbone [--out FILE]

A stage is ADAPTERS:WEIGHTS:SYSTEM: LoRA of rank 16 on the attention's layers ("attention"), or on the experts' stacked
weights as well ("experts"); weights in bf16, fp8, int8 or nf4 (TRL: bf16); Wishbone or TRL. Each stage makes the model
on the device, in a process of its own, and trains it on 8 pairs a step of UltraFeedback's lengths, with the model's
default auxiliary loss. `--tiny` takes small sizes, which a CPU trains, too.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.results import Row
from benchmarks.harness.shaped_training import TINY_CASE, add_options, shaped_job, train_shape
from benchmarks.harness.shapes import MIXTURES
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

PAIRS = "ultrafeedback:8"
ADAPTERS = ("attention", "experts")


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Train and measure (in the child)."""
    trained = train_shape(request, progress)
    execution = getattr(trained.trainer, "execution", None)
    graphs = execution.graphs if execution else None
    return trained.row | {
        "auxiliary_losses": [entry.get("aux_loss") for entry in trained.trainer.state.log_history if "loss" in entry],
        "graph_lengths": graphs.lengths if graphs else None,
    }


def job(stage: str, options: argparse.Namespace) -> Job:
    """Return the job of a stage; ValueError for one that does not exist."""
    adapters, weights, family = stage.split(":")
    if adapters not in ADAPTERS:
        raise ValueError(f"adapters {adapters!r} are not known: choose one of {', '.join(ADAPTERS)}")
    system = f"{family}-{weights}"
    if family == "wishbone":
        system += f":in_place=True:cuda_graphs={options.cuda_graphs}"
    pairs = TINY_CASE if options.tiny else PAIRS
    return shaped_job("mixtures", system, options.shape, adapters, pairs, options, stacks=adapters == "experts")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks mixtures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", default=["attention:bf16:wishbone", "attention:bf16:trl"])
    parser.add_argument("--shape", choices=MIXTURES, default="qwen3-30b-a3b")
    parser.add_argument("--cuda-graphs", choices=["auto", "on", "off"], default="on")
    add_options(parser)
    jobs.add_options(parser)
    options = parser.parse_args()
    try:
        planned = [job(stage, options) for stage in options.stages]
    except ValueError as error:
        parser.error(str(error))
    show(run_jobs(planned, options), "mixtures")
