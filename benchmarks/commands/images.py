"""Steps of vision-language models, with random weights of a known model's shape, beside TRL.

    python -m benchmarks images --systems wishbone-bf16,wishbone-nf4:activations=recompute,trl-bf16 [--out FILE]

Each system trains on the same pairs in a process of its own: images of about 1,000 tokens a pair, prompts of 40 and
completions of 100, LoRA of rank 16 on the seven linear layers of the language model, 8 pairs a step in batches of 4.
All pixels are made once. Two steps after the timed ones tell where the host and the GPU are, and the tower's share.
Weights in NF4 and FP8 are made on the device, in TRL as in Wishbone, the tower's too.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.results import Row
from benchmarks.harness.systems import parse_system
from benchmarks.harness.workloads import Lengths
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

BATCH, ACCUMULATION = 4, 2
WARM_UP, TIMED, LOOKED_AT = 3, 5, 2
PROMPT, COMPLETION = 40, 100
ADAPTED = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
SHAPES = ("qwen3-vl-4b", "gemma-3-4b", "tiny-qwen3-vl", "tiny-gemma-3")


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Train and measure (in the child)."""
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback

    from benchmarks.harness import vision
    from benchmarks.harness.clock import Clock, now, peak_gib
    from benchmarks.harness.codes import in_codes_of
    from benchmarks.harness.loading import RANK, Loaded, device_of, trainer_for
    from benchmarks.harness.step_work import StepWork

    system, shape = parse_system(request["system"]), vision.SHAPES[request["case"]]
    timed = request["warm_up"] + request["timed"]
    steps = timed + LOOKED_AT
    progress.phase("making the model")
    begun = time.perf_counter()
    device = device_of(system)
    model = vision.random_vision_model(shape, torch.float32 if system.weights == "f32" else torch.bfloat16, device)
    if system.weights not in ("f32", "bf16"):
        model = in_codes_of(model, system.weights)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    at_rest = torch.cuda.memory_allocated() / 2**30 if on_gpu else None
    ready = now()
    progress.phase("preparing the trainer")
    lengths = [Lengths(PROMPT, COMPLETION, COMPLETION)] * (BATCH * ACCUMULATION * steps)
    clock, work = Clock(steps, progress), StepWork(steps, getattr(model.model, shape.tower))
    trainer = trainer_for(
        system,
        Loaded(
            model,
            vision.RandomPixels(shape),
            {"peft_config": LoraConfig(r=RANK, lora_alpha=RANK, target_modules=ADAPTED, task_type="CAUSAL_LM")},
        ),
        device,
        request["scratch"],
        vision.image_rows(shape, lengths, request["images"] or shape.images),
        callbacks=[clock, work],
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=steps,
        **({"guard": "off"} if system.family == "wishbone" else {}),
    )
    constructed = now()

    def found() -> Row:
        figures = clock.figures(request["warm_up"], request["timed"], BATCH * ACCUMULATION, ready)
        return figures | {
            "pairs_a_step": BATCH * ACCUMULATION,
            "load_seconds": round(ready - begun, 2),
            "construction_seconds": round(constructed - ready, 2),
            "losses": [round(float(one["loss"]), 6) for one in trainer.state.log_history if "loss" in one],
            "weights_gib": None if at_rest is None else round(at_rest, 3),
            "form_reason": getattr(trainer, "form_reason", None),
            "execution": str(getattr(trainer, "execution", "")),
        }

    peaks: Row = {}

    class AfterTimed(TrainerCallback):  # type: ignore[misc]
        """Keeps what there is before the steps that are looked at, which takes memory and time."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if len(clock.seconds) == timed:
                peaks.update(peak_gib())
                progress.write(partial=found() | peaks)

    trainer.add_callback(AfterTimed())
    trainer.train()
    return found() | peaks | {"looked_at": work.found}


def job(system: str, shape: str, warm_up: int = WARM_UP, timed: int = TIMED, images: int = 0, **options: Any) -> Job:
    """Return the job of one row; ValueError for a system that does not exist."""
    parse_system(system)
    settings = {"warm_up": warm_up, "timed": timed, "images": images}
    return Job("images", system, None, shape, settings, **options)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks images", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", required=True, help="systems, separated by commas, as in throughput")
    parser.add_argument("--shapes", default="qwen3-vl-4b", help=f"by commas, of {', '.join(SHAPES)}")
    parser.add_argument("--images", type=int, default=0, help="images a pair, instead of the shape's own number")
    jobs.add_step_options(parser, WARM_UP, TIMED)
    parser.add_argument("--limit-seconds", type=float, default=300, help="time for one row")
    jobs.add_options(parser)
    options = parser.parse_args()
    if unknown := set(options.shapes.split(",")) - set(SHAPES):
        parser.error(f"shape {unknown.pop()!r} is not known: choose of {', '.join(SHAPES)}")
    try:
        planned = [
            job(system, shape, options.warm_up, options.timed, options.images, limit_seconds=options.limit_seconds)
            for shape in options.shapes.split(",")
            for system in options.systems.split(",")
        ]
    except ValueError as error:
        parser.error(str(error))
    show(run_jobs(planned, options), "images")
