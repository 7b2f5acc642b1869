"""How much of an adapter does training in 16 bits or fewer see? One adapter, measured in each system.

    python -m benchmarks adapter-rounding --data PAIRS.json [--systems trl-bf16,wishbone-bf16] [--out FILE]

The first system trains an adapter in float32 on the first pairs of a file. Then each system starts from that adapter,
with a learning rate too small to change it, and reports the reward margin and the loss of the same pairs. Whatever
differs from float32 is what rounding does to them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.pairs import read_pairs, write_pairs
from benchmarks.harness.results import Row
from benchmarks.harness.systems import parse_system
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

EXACT = "wishbone-f32"
SYSTEMS = f"{EXACT},trl-bf16,trl-nf4,wishbone-bf16,wishbone-nf4,wishbone-fp8"
MAX_LENGTH = 1024
UNCHANGED = 1e-30
"""A learning rate that leaves every float32 parameter as it is."""


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Train the adapter if there is none yet, then measure it in the request's system (in the child)."""
    adapter = Path(request["adapter"])
    trained: Row = {}
    if not adapter.exists():
        progress.phase("training the adapter")
        trained = {"trained": _run(request, EXACT, adapter, request["learning_rate"], request["epochs"])}
    progress.phase("measuring the adapter")
    return _run(request, request["system"], adapter, UNCHANGED, 1) | trained


def _run(request: Row, name: str, adapter: Path, learning_rate: float, epochs: int) -> Row:
    """Train from the adapter, or make it where its file is missing; return the mean margin and loss of the steps."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import set_seed

    from benchmarks.harness.loading import Origin, device_of, load, trainer_for

    system = parse_system(name)
    device = device_of(system)
    loaded = load(system, Origin(None, request["directory"]), device, MAX_LENGTH, seed=0)
    set_seed(0)
    trainer = trainer_for(
        system,
        loaded,
        device,
        request["scratch"],
        read_pairs(request["pairs"])["train"],
        per_device_train_batch_size=8,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_length=MAX_LENGTH,
    )
    parameters = {key: value for key, value in trainer.model.named_parameters() if value.requires_grad}
    if adapter.exists():
        saved = load_file(adapter)
        if saved.keys() != parameters.keys():
            raise ValueError(f"{name} names the adapter's parameters differently than {EXACT}")
        with torch.no_grad():
            for key, value in parameters.items():
                value.copy_(saved[key])
    trainer.train()
    if not adapter.exists():
        save_file({key: value.detach().cpu().contiguous() for key, value in parameters.items()}, adapter)
    steps = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    return {
        "margin": fmean(float(step["rewards/margins"]) for step in steps),
        "loss": fmean(float(step["loss"]) for step in steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks adapter-rounding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="pairs in any layout that Wishbone reads")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--systems", default=SYSTEMS, help="systems, separated by commas")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--limit-seconds", type=float, default=600, help="time for one system")
    jobs.add_options(parser)
    options = parser.parse_args()
    from wishbone.model.load import resolve_model

    case = f"{Path(options.model).name}, {options.pairs} pairs, {options.epochs} epochs at {options.learning_rate:g}"
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model": resolve_model(options.model),
            "pairs": write_pairs(Path(folder) / "pairs.json", options.data, options.pairs),
            "adapter": str(Path(folder) / "adapter.safetensors"),
            "epochs": options.epochs,
            "learning_rate": options.learning_rate,
        }
        planned = [
            Job("adapter_rounding", system, None, case, settings, limit_seconds=options.limit_seconds)
            for system in options.systems.split(",")
        ]
        show(run_jobs(planned, options), "adapter_rounding")
