"""Pairs a second and peak memory of training steps, for systems side by side.

Each system trains on the same pairs in the same order, in a process of its own: random weights in the shape of a real
model, LoRA of rank 16 on all seven linear layers. The first steps warm up; the others are timed, and the clock waits
for the device. A process that fails or takes too long becomes a row with the reason.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.results import Row
from benchmarks.harness.systems import System, parse_system
from benchmarks.harness.workloads import SIZES, Case, draw_lengths, texts, useful_flop
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
    import gc

    import torch

    from benchmarks.harness.clock import Clock, now, peak_gib
    from benchmarks.harness.loading import Origin, device_of, load, trainer_for

    gc.collect()
    case, size = Case.parse(request["case"]), SIZES[request["size"]]
    steps = request["warm_up"] + request["timed"]
    lengths = draw_lengths(case.workload, case.pairs_a_step * steps)
    rows = texts(lengths, size.vocabulary)
    clock = Clock(steps, progress)
    progress.phase("loading the model")
    begun = time.perf_counter()
    device = device_of(system)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    loaded = load(system, Origin(request["size"], request.get("directory")), device)
    ready = now()
    at_rest = torch.cuda.memory_allocated() / 2**30 if device.type == "cuda" else None
    progress.phase("preparing the trainer")
    trainer = trainer_for(
        system,
        loaded,
        device,
        request["scratch"],
        rows,
        callbacks=[clock],
        per_device_train_batch_size=case.batch,
        gradient_accumulation_steps=case.accumulation,
        max_steps=steps,
    )
    trainer.train()
    reference: Row = {}
    rows_are: Row = {}
    if system.family == "wishbone":
        reference = trainer.reference_counts()
        rows_are = _rows(trainer)
    timed = lengths[case.pairs_a_step * request["warm_up"] :]
    seconds = sum(clock.seconds[request["warm_up"] :])
    between = sum(clock.seconds_between[request["warm_up"] - 1 :])
    flop = useful_flop(size, timed, reference_stored=system.warm_store)
    return {
        "pairs_per_s": round(len(timed) / seconds, 4),
        "pairs_per_s_with_data": round(len(timed) / between, 4),
        "useful_tflops": round(flop / seconds / 1e12, 3),
        "step_seconds": [round(value, 4) for value in clock.seconds],
        "tokens_per_pair": {
            name: round(sum(getattr(pair, name) for pair in timed) / len(timed), 1)
            for name in ("unique", "two_sequences", "scored")
        },
        "load_seconds": round(ready - begun, 2),
        "first_step_seconds": round(clock.first_step_done - ready, 2),
        "compiled_at_start": clock.compiled_at_start,
        "compiled_later": clock.compiled_later(),
        "losses": [round(float(entry["loss"]), 6) for entry in trainer.state.log_history if "loss" in entry],
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "frozen_elements": _frozen_elements(trainer.model),
        "weights_gib": None if at_rest is None else round(at_rest, 3),
        "start_peak_gib": round(clock.start_peak / 2**30, 3),
        "not_on_fast_path_because": getattr(trainer, "form_reason", None),
        "reference": reference,
        "rows": rows_are,
        **peak_gib(),
    }


def _rows(trainer: Any) -> Row:
    """Return the token budget of a row, and how many of the layers keep their activations in a row that long."""
    from wishbone.engine.execution import EVERYTHING

    step = getattr(trainer, "preference_step", None)
    if step is None or trainer.execution.room in (None, EVERYTHING):
        return {}
    found = trainer.execution.summary(len(step.policy.layers))
    return {name: found[name] for name in ("token_budget", "layers", "kept_layers")}


def _frozen_elements(model: Any) -> dict[str, int]:
    """Count the elements that are not trained, by dtype in memory: two 4-bit weights are one uint8."""
    counts: dict[str, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.requires_grad:
            name = str(tensor.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + tensor.numel()
    return counts


def job(system: str, case: str, size: str, warm_up: int = WARM_UP, timed: int = TIMED, **options: Any) -> Job:
    """Return the job of one row; ValueError for a system or case that does not exist."""
    parse_system(system)
    settings = {"warm_up": warm_up, "timed": timed}
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
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="steps that are not timed, at least 1")
    parser.add_argument("--timed", type=int, default=TIMED, help="steps that are timed")
    parser.add_argument("--limit-seconds", type=float, default=300, help="time for one row")
    jobs.add_options(parser)
    options = parser.parse_args()
    if options.warm_up < 1 or options.timed < 1:
        parser.error("--warm-up and --timed must be 1 or more")
    try:
        planned = [
            job(system, case, options.size, options.warm_up, options.timed, limit_seconds=options.limit_seconds)
            for case in options.cases.split(",")
            for system in options.systems.split(",")
        ]
    except ValueError as error:
        parser.error(str(error))
    show(run_jobs(planned, options), "throughput")
