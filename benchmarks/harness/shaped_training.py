"""Timed training of a model in a published shape, made on the device, with LoRA on the layers that the shape names."""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from benchmarks.harness.jobs import Job, add_step_options, add_watch
from benchmarks.harness.results import Row
from benchmarks.harness.shapes import SHAPES, STACKS, shaped_model
from benchmarks.harness.systems import parse_system
from benchmarks.harness.workloads import Case

if TYPE_CHECKING:
    from benchmarks.harness.timed_training import TimedTraining
    from benchmarks.harness.worker import Progress

TINY_CASE = "tiny:4"


def train_shape(request: Row, progress: Progress) -> TimedTraining:
    """Train and measure what `shaped_job` asks for (in the child)."""
    import torch
    from peft import LoraConfig

    from benchmarks.harness.codes import in_codes_of
    from benchmarks.harness.loading import RANK, Loaded
    from benchmarks.harness.random_model import word_tokenizer
    from benchmarks.harness.step_work import kernels_of
    from benchmarks.harness.timed_training import timed_training

    system, shape = parse_system(request["system"]), SHAPES[request["size"]]

    def loaded(device: torch.device) -> Loaded:
        model = shaped_model(request["size"], device, torch.bfloat16, layers=request["layers"], tiny=request["tiny"])
        model = model if system.weights == "bf16" else in_codes_of(model, system.weights)
        adapter = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(shape.linears), task_type="CAUSAL_LM")
        adapter.target_parameters = list(STACKS) if request["stacks"] else None
        return Loaded(model, word_tokenizer(model.config.vocab_size), {"peft_config": adapter})

    vocabulary = (shape.small if request["tiny"] else shape.sizes)["vocab_size"]
    settings = {"guard": "off"} if system.family == "wishbone" else {}
    trained = timed_training(system, loaded, request, progress, Case.parse(request["pairs"]), vocabulary, **settings)
    step = getattr(trained.trainer, "preference_step", None)
    if request["look"] and step is not None:
        from wishbone.engine.step import PreferenceStep
        from wishbone.preference.metrics import PairMetrics
        from wishbone.trainer.start_check import uncached

        (pairs,) = (batch["pairs"] for batch in islice(trained.trainer.get_train_dataloader(), 1))
        execution = replace(trained.trainer.execution, graphs=None)
        step = PreferenceStep(step.policy, uncached(step), step.objective)  # its reference values are stored by now
        trained.row["looked_at"] = kernels_of(lambda: step.backward([pairs], PairMetrics(0.1), execution))
    return trained


def shaped_job(
    kind: str, system: str, shape: str, case: str, pairs: str, options: argparse.Namespace, *, stacks: bool = False
) -> Job:
    """Return the job of one row.

    Args:
        kind: the command, whose `measure` calls `train_shape`.
        system: as `parse_system` reads it.
        shape: a name of `SHAPES`.
        case: what tells rows of one system and shape apart.
        pairs: as `Case.parse` reads it.
        options: of `add_options`.
        stacks: whether the experts' stacked weights get adapters, too.

    Raises:
        ValueError: no such system or case.
    """
    parse_system(system), Case.parse(pairs)
    settings = {
        "warm_up": options.warm_up, "timed": options.timed, "layers": options.layers, "tiny": options.tiny,
        "pairs": pairs, "stacks": stacks, "look": options.look, "watch": options.watch,
    }  # fmt: skip
    return Job(kind, system, shape, case, settings, options.limit_seconds, options.expected_seconds)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that train shapes."""
    add_step_options(parser, 3, 8)
    add_watch(parser)
    parser.add_argument("--layers", type=int, help="instead of the shape's own")
    parser.add_argument("--tiny", action="store_true", help="small sizes and short pairs, which a CPU trains, too")
    parser.add_argument("--look", action="store_true", help="profile one more row after the steps: kernels by time")
    parser.add_argument("--limit-seconds", type=float, default=300, help="time for one row")
    parser.add_argument("--expected-seconds", type=float, default=60, help="with --minutes: time that a row needs")
