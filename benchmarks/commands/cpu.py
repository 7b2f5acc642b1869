"""Wishbone beside TRL on a CPU: pairs a second and peak memory of DPO with LoRA on real pairs.

    python -m benchmarks cpu --data PAIRS.json [--steps 3] [--rounds 2] [--out benchmarks/results/cpu-trl-1.16.json]

SmolLM2-135M-Instruct in float32, LoRA of rank 16 on all linear layers, max_length 1024, 4 pairs a step, the same pairs
in the same order. Each run is a process of its own, and the systems take turns: one run each, then the next round. The
first step warms up; the others are timed from the end of one step to the end of the next, with all that lies between.
Memory is the process's peak resident memory. `others` is the share of the cores that other processes used meanwhile:
above some percent the speeds do not count. Processor seconds depend less on others, as long as threads do not wait for
each other by spinning: with OMP_NUM_THREADS=1 they compare systems on a busy machine, too.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.pairs import read_pairs, write_pairs
from benchmarks.harness.results import Row
from benchmarks.harness.systems import parse_system
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

SYSTEMS = "trl-f32,wishbone-f32"
PAIRS_A_STEP = 4
MAX_LENGTH = 1024


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Train one step that warms up and the timed ones (in the child)."""
    import torch
    from transformers import set_seed

    from benchmarks.harness.clock import Clock, peak_gib
    from benchmarks.harness.loading import Origin, load, trainer_for
    from benchmarks.harness.neighbours import Neighbours

    system, device = parse_system(request["system"]), torch.device("cpu")
    progress.phase("loading the model")
    loaded = load(system, Origin(None, request["directory"]), device, MAX_LENGTH)
    pairs = read_pairs(request["pairs"])["train"]
    clock = Clock(len(pairs) // PAIRS_A_STEP, progress)
    set_seed(0)  # the same adapter in every system
    trainer = trainer_for(
        system,
        loaded,
        device,
        request["scratch"],
        pairs,
        callbacks=[clock],
        per_device_train_batch_size=PAIRS_A_STEP,
        max_steps=len(pairs) // PAIRS_A_STEP,
        max_length=MAX_LENGTH,
        lr_scheduler_type="constant",
    )
    neighbours = Neighbours()
    trainer.train()
    others = neighbours.share()
    return {
        "round": request["round"],
        "pairs_per_s": round(PAIRS_A_STEP * len(clock.seconds_between) / sum(clock.seconds_between), 4),
        "step_seconds": [round(value, 2) for value in clock.seconds_between],
        "processor_seconds_per_pair": round(
            sum(clock.processor_seconds) / (PAIRS_A_STEP * len(clock.processor_seconds)), 3
        ),
        "first_step_seconds": round(clock.seconds[0], 2),
        "peak_gib": peak_gib()["host_peak_gib"],
        "losses": [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        "threads": torch.get_num_threads(),
        "others": None if others is None else round(others, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="pairs in any layout that Wishbone reads")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--systems", default=SYSTEMS, help="systems, by commas; the first is the baseline")
    parser.add_argument("--steps", type=jobs.one_or_more, default=3, help="timed steps of 4 pairs, after one more")
    parser.add_argument("--rounds", type=jobs.one_or_more, default=2, help="runs of each system, in turns")
    parser.add_argument("--limit-seconds", type=float, default=1800, help="time for one run")
    jobs.add_options(parser)
    options = parser.parse_args()
    from wishbone.model.load import resolve_model

    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(Path(folder) / "pairs.json", options.data, PAIRS_A_STEP * (options.steps + 1))
        settings = {"model": resolve_model(options.model), "pairs": pairs}
        case = f"{Path(options.model).name}, {options.steps} steps of {PAIRS_A_STEP} pairs"
        planned = [
            Job(
                "cpu",
                system,
                None,
                f"{case}, round {number}",
                {**settings, "round": number},
                limit_seconds=options.limit_seconds,
            )
            for number in range(1, options.rounds + 1)
            for system in options.systems.split(",")
        ]
        show(run_jobs(planned, options), "cpu")
