"""Does a faster or smaller form of the frozen weights learn the same? A real model, real pairs, several seeds.

SmolLM2-135M (or another model) is trained with LoRA on the first pairs of a file and measured on pairs of it that it is
not trained on, once for each seed and system; the seed decides the order of pairs and the adapter's first values. What
an adapter has learned is measured in one way for all systems (`heldout`); a trainer's own evaluations, in its own
numerics, are kept beside it. `agreement` says for each figure whether a system differs from the first one by more than
seeds do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks import jobs
from benchmarks.children import Row
from benchmarks.jobs import Job, run_jobs
from benchmarks.systems import parse_system
from benchmarks.tables import show
from benchmarks.workloads import SIZES

if TYPE_CHECKING:
    from benchmarks.worker import Progress

SYSTEMS = "trl-bf16,wishbone-bf16,wishbone-fp8,wishbone-nf4"
MODEL = "smollm2-135m-instruct"
BATCH = 8
MAX_LENGTH = 1024
LEARNED = ("heldout_loss", "heldout_accuracy", "heldout_margin")
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
    from datasets import Dataset
    from transformers import set_seed

    from benchmarks.clock import peak_gib
    from benchmarks.heldout import evaluate
    from benchmarks.loading import Origin, arguments, device_of, load, trainer_classes

    system = parse_system(request["system"])
    pairs = json.loads(Path(request["pairs"]).read_text(encoding="utf-8"))
    trainer_class, config_class = trainer_classes(system)
    gc.collect()
    device = device_of(system)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    loaded = load(system, Origin(None, request["directory"]), device, MAX_LENGTH, seed)
    settings = arguments(
        system,
        device,
        request["scratch"],
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        num_train_epochs=request["epochs"],
        learning_rate=request["learning_rate"],
        max_length=MAX_LENGTH,
        eval_strategy="epoch",
        train_sampling_strategy="random",
        seed=seed,
    )
    set_seed(seed)
    trainer = trainer_class(
        model=loaded.model,
        args=config_class(**settings),
        train_dataset=Dataset.from_list(pairs["train"]),
        eval_dataset=Dataset.from_list(pairs["heldout"]),
        processing_class=loaded.tokenizer,
        **loaded.options,
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
    learned = evaluate(request["directory"], adapter, pairs["heldout"], MAX_LENGTH, device)
    last_epoch = losses[-max(1, round(len(losses) / request["epochs"])) :]
    return {
        "seed": seed,
        "losses": losses,
        "evaluations": evaluations,
        "last_epoch_loss": fmean(last_epoch),
        **learned,
        "seconds": round(seconds, 2),
        "pairs_per_s": round(len(pairs["train"]) * request["epochs"] / seconds, 3),
        **peak,
    }


def split_pairs(data: str, train: int, heldout: int) -> dict[str, list[Row]]:
    """Return the first `train` pairs of a file and the last `heldout` ones, as rows of prompt, chosen and rejected.

    Raises:
        SystemExit: the file has fewer.
    """
    from wishbone.data.source import load_pairs

    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in load_pairs(data)]
    if len(rows) < train + heldout:
        raise SystemExit(f"{data} has {len(rows)} pairs, fewer than {train} + {heldout}; ask for fewer")
    return {"train": rows[:train], "heldout": rows[-heldout:]}


def job(system: str, directory: str, pairs: Path, options: argparse.Namespace) -> Job:
    """Return the job of one system: train the model in `directory` on the pairs in the file `pairs`."""
    settings = {
        "model": directory,
        "pairs": str(pairs),
        "seeds": list(range(options.seeds)),
        **{name: getattr(options, name) for name in ("train", "heldout", "epochs", "learning_rate")},
    }
    name = f"{Path(options.model).name}, {options.train} pairs, {options.epochs} epochs, {options.seeds} seeds"
    return Job(
        "quality",
        system,
        options.size,
        name,
        settings,
        limit_seconds=options.limit_seconds,
        expected_seconds=options.expected_seconds,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides the training."""
    parser.add_argument("--model", default=MODEL, help="the embedded model, a directory or a GGUF file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=240, help="pairs to train on")
    parser.add_argument("--heldout", type=int, default=60, help="pairs to measure on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--limit-seconds", type=float, default=600, help="time for one system with all seeds")
    parser.add_argument("--expected-seconds", type=float, default=60, help="the same, as --minutes counts with it")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="pairs in any layout that Wishbone reads")
    parser.add_argument("--systems", default=SYSTEMS, help="systems, separated by commas; the first is compared with")
    parser.add_argument("--size", choices=SIZES, help="a random model instead, to try the benchmark out")
    add_options(parser)
    jobs.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        show(run_jobs(planned(options, options.systems.split(","), Path(folder)), options), "quality")


def planned(options: argparse.Namespace, systems: list[str], folder: Path) -> list[Job]:
    """Write the pairs and, where one is asked for, the random model into `folder`, and return the jobs."""
    pairs = folder / "pairs.json"
    pairs.write_text(json.dumps(split_pairs(options.data, options.train, options.heldout)), encoding="utf-8")
    if options.size:
        import torch

        from benchmarks.random_model import write_random_model

        options.model = "random model"
        directory = str(folder / options.size)
        write_random_model(options.size, torch.float32, torch.device("cpu"), Path(directory))
    else:
        from wishbone.model.load import resolve_model

        directory = resolve_model(options.model)
    return [job(system, directory, pairs, options) for system in systems]
