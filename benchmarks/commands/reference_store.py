"""A sweep of three betas that shares one reference store: pairs a second, and whether losses stay the same.

    python -m benchmarks reference-store --data PAIRS.json [--steps 6] [--out FILE]

SmolLM2-135M-Instruct in float32 on the CPU, LoRA of rank 16 on all linear layers, max_length 1024, 4 pairs a step, the
same pairs in the same order. Three runs without a store, then three with one that starts empty: the first run fills it,
the others read it. Each run is a process of its own. Speed is all pairs over all of `trainer.train()`, so it includes
hashing the weights, looking values up and writing them. Exit status 1: a later run was not 1.3 times as fast as the
first, or a loss differed by more than 1e-6 from the run without a store.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.pairs import read_pairs, write_pairs
from benchmarks.harness.results import Results, Row
from benchmarks.harness.systems import parse_system
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

SYSTEM = "wishbone-f32"
BETAS = (0.05, 0.1, 0.3)
PAIRS_A_STEP = 4
MAX_LENGTH = 1024
SPEEDUP = 1.3
LOSS_DIFFERENCE = 1e-6


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Train one run of the sweep (in the child)."""
    import torch

    from benchmarks.harness.clock import now
    from benchmarks.harness.loading import Origin, load, trainer_for

    system, device = parse_system(request["system"]), torch.device("cpu")
    progress.phase("loading the model")
    pairs = read_pairs(request["pairs"])["train"]
    trainer = trainer_for(
        system,
        load(system, Origin(None, request["directory"]), device, MAX_LENGTH),
        device,
        request["scratch"],
        pairs,
        per_device_train_batch_size=PAIRS_A_STEP,
        max_steps=len(pairs) // PAIRS_A_STEP,
        max_length=MAX_LENGTH,
        lr_scheduler_type="constant",
        beta=request["beta"],
        reference_store=request["store"],
    )
    progress.phase("training")
    begun = now()
    trainer.train()
    seconds = now() - begun
    return {
        "beta": request["beta"],
        "pairs_per_s": round(trainer.trained_pairs / seconds, 4),
        "reference": trainer.reference_counts(),
        "losses": [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        "threads": torch.get_num_threads(),
    }


def case_of(beta: float, stored: bool) -> str:
    """Return the case of one run."""
    return f"beta {beta:g}, {'with' if stored else 'without'} a store"


def verdict(results: Results) -> str | None:
    """Return what the sweep missed, or None."""
    runs = {stored: [_run(results, beta, stored) for beta in BETAS] for stored in (True, False)}
    missing = [row for rows in runs.values() for row in rows if row is None]
    if missing:
        return "not every run has a result"
    with_store, without = ([row for row in runs[stored] if row] for stored in (True, False))
    first, *later = (row["pairs_per_s"] for row in with_store)
    difference = max(
        abs(a - b)
        for stored, plain in zip(with_store, without, strict=True)
        for a, b in zip(stored["losses"], plain["losses"], strict=True)
    )
    if min(later) >= SPEEDUP * first and difference <= LOSS_DIFFERENCE:
        return None
    return (
        f"later runs are {min(later) / first:.2f} times as fast as the first, at least {SPEEDUP} are wanted; "
        f"losses differ by {difference:g}, at most {LOSS_DIFFERENCE:g} is allowed"
    )


def _run(results: Results, beta: float, stored: bool) -> Row | None:
    return results.find("reference_store", None, SYSTEM, case_of(beta, stored))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks reference-store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="pairs in any layout that Wishbone reads")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit-seconds", type=float, default=1800, help="time for one run")
    jobs.add_options(parser)
    options = parser.parse_args()
    from wishbone.model.load import resolve_model

    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(Path(folder) / "pairs.json", options.data, PAIRS_A_STEP * options.steps)
        settings = {"model": resolve_model(options.model), "pairs": pairs}
        planned = [
            Job(
                "reference_store",
                SYSTEM,
                None,
                case_of(beta, stored),
                {**settings, "beta": beta, "store": str(Path(folder) / "references.sqlite") if stored else "off"},
                limit_seconds=options.limit_seconds,
            )
            for stored in (False, True)
            for beta in BETAS
        ]
        results = run_jobs(planned, options)
    show(results, "reference_store")
    if missed := verdict(results):
        raise SystemExit(missed)
