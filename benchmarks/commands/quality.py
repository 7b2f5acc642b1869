"""Does a lower precision of the frozen weights learn the same? A real model, real pairs, several seeds.

SmolLM2-135M (or another model) trains with LoRA on the first pairs of a file, once for each seed and system, and is
measured on the file's last pairs. The seed decides the order of pairs and the adapter's initial values. `heldout`
measures every system's adapters in one way; the trainer's own evaluations, in its own precision, are kept beside that.
`agreement` says for each figure whether a system differs from the first one by more than seeds do. With `--at-once`
each seed is a row of its own, and speeds are those of processes that share a GPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.pairs import read_pairs, write_pairs
from benchmarks.harness.results import Row
from benchmarks.harness.systems import parse_system
from benchmarks.harness.workloads import SIZES
from benchmarks.rendering.real_pairs_tables import ONE_SEED
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

SYSTEMS = "trl-bf16,wishbone-bf16,wishbone-int8,wishbone-fp8,wishbone-nf4"
MODEL = "smollm2-135m-instruct"
BATCH = 8
MAX_LENGTH = 1024
LEARNED = ("heldout_loss", "heldout_accuracy", "heldout_margin")
ROUNDED = ("fp8", "int8", "nf4")
"""Frozen weights that are rounded for training; adapters are judged on the rounded weights, too."""
EVALUATED = {
    "eval_loss": "loss",
    "eval_rewards/accuracies": "accuracy",
    "eval_rewards/margins": "margin",
}


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Train once for each seed (in the child)."""
    runs = []
    for number, seed in enumerate(request["seeds"]):
        progress.phase(f"seed {seed}, the {number + 1}. of {len(request['seeds'])}")
        runs.append(_train(request, seed))
        progress.write(partial={"runs": runs})
    return {
        "training": {name: request[name] for name in ("epochs", "learning_rate", "seeds", "train", "heldout")},
        "runs": runs,
        "pairs_per_s": round(fmean(run["pairs_per_s"] for run in runs), 3),
        "peak_gib": max(run["peak_gib"] for run in runs),
        **{name: [run[name] for run in runs] for name in (*LEARNED, "last_epoch_loss")},
    }


def _train(request: Row, seed: int) -> Row:
    import gc

    import torch
    from transformers import set_seed

    from benchmarks.harness.clock import peak_gib
    from benchmarks.harness.heldout import evaluate
    from benchmarks.harness.loading import Origin, device_of, load, trainer_for

    system = parse_system(request["system"])
    pairs = read_pairs(request["pairs"])
    gc.collect()
    device = device_of(system)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    loaded = load(system, Origin(None, request["directory"]), device, MAX_LENGTH, seed)
    set_seed(seed)
    trainer = trainer_for(
        system,
        loaded,
        device,
        request["scratch"],
        pairs["train"],
        eval_dataset=pairs["heldout"],
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        num_train_epochs=request["epochs"],
        learning_rate=request["learning_rate"],
        max_length=MAX_LENGTH,
        eval_strategy="epoch",
        train_sampling_strategy="random",
        seed=seed,
    )
    begun = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begun
    history = trainer.state.log_history
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    evaluations = [
        {name: float(entry[key]) for key, name in EVALUATED.items()} for entry in history if "eval_loss" in entry
    ]
    peak = peak_gib()
    adapter = str(Path(request["scratch"]) / f"adapter-{seed}")
    trainer.model.save_pretrained(adapter)
    del trainer, loaded
    gc.collect()
    judged = (request["directory"], adapter, pairs["heldout"], MAX_LENGTH, device)
    learned = evaluate(*judged)
    codes = system.rounded or system.weights
    rounded = {"on_rounded_weights": evaluate(*judged, rounded=codes)} if codes in ROUNDED else {}
    last_epoch = losses[-max(1, round(len(losses) / request["epochs"])) :]
    return {
        "seed": seed,
        "losses": losses,
        "evaluations": evaluations,
        "last_epoch_loss": fmean(last_epoch),
        **learned,
        **rounded,
        "seconds": round(seconds, 2),
        "pairs_per_s": round(len(pairs["train"]) * request["epochs"] / seconds, 3),
        **peak,
    }


def job(system: str, directory: str, pairs: str, options: argparse.Namespace, seed: int | None = None) -> Job:
    """Return one system's job, with one seed or all: train the model in `directory` on the pairs in `pairs`."""
    settings = {
        "model": directory,
        "pairs": pairs,
        "seeds": seeds_of(options) if seed is None else [seed],
        **{name: getattr(options, name) for name in ("train", "heldout", "epochs", "learning_rate")},
    }
    name = f"{Path(options.model).name}, {options.train} pairs, {options.epochs} epochs, {options.seeds} seeds"
    if seed is not None:
        name += f"{ONE_SEED}{seed}"
    return Job(
        "quality",
        system,
        options.size,
        name,
        settings,
        limit_seconds=options.limit_seconds,
        expected_seconds=options.expected_seconds,
    )


def seeds_of(options: argparse.Namespace) -> list[int]:
    """Return the seeds that are asked for."""
    return list(range(options.first_seed, options.first_seed + options.seeds))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide the training."""
    parser.add_argument("--model", default=MODEL, help="the embedded model, a directory or a GGUF file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="so that several processes can share the seeds")
    parser.add_argument("--train", type=int, default=240, help="pairs to train on")
    parser.add_argument("--heldout", type=int, default=60, help="pairs to measure on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--limit-seconds", type=float, default=600, help="time for one system with all seeds")
    parser.add_argument("--expected-seconds", type=float, default=60, help="time that --minutes expects for it")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="pairs in any layout that Wishbone reads")
    parser.add_argument(
        "--systems",
        default=SYSTEMS,
        help="systems, by commas; the first is the baseline",
    )
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="train so many at the same time")
    parser.add_argument("--size", choices=SIZES, help="a random model instead, to try the benchmark out")
    add_options(parser)
    jobs.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jobs_of_all = planned(options, options.systems.split(","), Path(folder), each_seed=options.at_once > 1)
        show(run_jobs(jobs_of_all, options, at_once=options.at_once), "quality")


def planned(options: argparse.Namespace, systems: list[str], folder: Path, *, each_seed: bool = False) -> list[Job]:
    """Write the pairs and, where one is asked for, the random model into `folder`, and return the jobs.

    With `each_seed` every seed of a system is a job of its own.
    """
    pairs = write_pairs(folder / "pairs.json", options.data, options.train, options.heldout)
    if options.size:
        import torch

        from benchmarks.harness.random_model import write_random_model

        options.model = "random model"
        directory = str(folder / options.size)
        write_random_model(options.size, torch.float32, torch.device("cpu"), Path(directory))
    else:
        from wishbone.model.load import resolve_model

        directory = resolve_model(options.model)
    seeds = seeds_of(options) if each_seed else [None]
    return [job(system, directory, pairs, options, seed) for seed in seeds for system in systems]
