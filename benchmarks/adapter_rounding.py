"""How much of an adapter does training in 16 bits or fewer see? One adapter, measured in each system.

    python -m benchmarks.adapter_rounding --data PAIRS.json [--systems trl-bf16,wishbone-bf16] [--out FILE]

An adapter is trained in float32 on the first pairs of a file. Then each system's trainer starts from it, with a
learning rate that changes nothing, and says the reward margin and the loss of the same pairs. What differs from
float32's is what rounding does to them.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.children import Row

SYSTEMS = "wishbone-f32,trl-bf16,trl-nf4,wishbone-bf16,wishbone-nf4,wishbone-fp8"
EXACT = "wishbone-f32"
MAX_LENGTH = 1024
UNCHANGED = 1e-30
"""A learning rate that moves no float32 number."""


def run(name: str, options: Any, directory: str, pairs: list[Row], adapter: Any = None) -> tuple[Row, Any]:
    """Train from an adapter, changing nothing, or train one if there is none; return figures and the adapter."""
    import torch
    from datasets import Dataset
    from transformers import set_seed

    from benchmarks.loading import Origin, arguments, device_of, load, trainer_classes
    from benchmarks.systems import parse_system

    system = parse_system(name)
    device = device_of(system)
    trainer_class, config_class = trainer_classes(system)
    loaded = load(system, Origin(None, directory), device, MAX_LENGTH, seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        settings = arguments(
            system,
            device,
            scratch,
            per_device_train_batch_size=8,
            num_train_epochs=1 if adapter else options.epochs,
            learning_rate=UNCHANGED if adapter else options.learning_rate,
            lr_scheduler_type="constant",
            max_length=MAX_LENGTH,
        )
        set_seed(0)
        trainer = trainer_class(
            model=loaded.model,
            args=config_class(**settings),
            train_dataset=Dataset.from_list(pairs),
            processing_class=loaded.tokenizer,
            **loaded.options,
        )
        trained = {key: value for key, value in trainer.model.named_parameters() if value.requires_grad}
        if adapter:
            if trained.keys() != adapter.keys():
                raise SystemExit(f"{name} names the adapter's weights in another way than {EXACT}")
            with torch.no_grad():
                for key, value in trained.items():
                    value.copy_(adapter[key])
        trainer.train()
    steps = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    adapter = {key: value.detach().cpu().clone() for key, value in trained.items()}
    figures = {
        "margin": fmean(float(step["rewards/margins"]) for step in steps),
        "loss": fmean(float(step["loss"]) for step in steps),
    }
    del trainer, loaded, trained
    gc.collect()
    return figures, adapter


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapter_rounding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="pairs in any layout that Wishbone reads")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--systems", default=SYSTEMS)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--commit", help="of these sources, where they are no checkout")
    parser.add_argument("--out", type=Path, default=Path("adapter-rounding.json"))
    options = parser.parse_args()
    import wishbone.process_memory  # noqa: F401  settles host memory before PyTorch is there
    from benchmarks.loading import versions
    from benchmarks.quality import split_pairs
    from benchmarks.results import Results
    from benchmarks.systems import parse_system
    from wishbone.model.load import resolve_model

    directory = resolve_model(options.model)
    pairs = split_pairs(options.data, options.pairs, 0)["train"]
    results = Results()
    results.begin_call(options.commit)
    case = f"{Path(options.model).name}, {len(pairs)} pairs, {options.epochs} epochs at {options.learning_rate:g}"
    trained, adapter = run(EXACT, options, directory, pairs)
    print(f"trained: margin {trained['margin']:.4f}, loss {trained['loss']:.4f} on average", flush=True)
    for name in options.systems.split(","):
        figures, _ = run(name, options, directory, pairs, adapter)
        print(f"{name}: margin {figures['margin']:.4f}, loss {figures['loss']:.4f}", flush=True)
        row = {"kind": "adapter rounding", "size": None, "system": name, "case": case, "status": "ok", **figures}
        results.add({**row, "versions": versions(parse_system(name))})
        results.write(options.out)


if __name__ == "__main__":
    main()
