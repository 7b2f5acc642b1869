"""Some training steps of one system on one workload, timed, with what they took."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from benchmarks.harness.clock import Clock, now, peak_gib
from benchmarks.harness.loading import Loaded, device_of, trainer_for
from benchmarks.harness.results import Row
from benchmarks.harness.step_watch import StepWatch
from benchmarks.harness.systems import System
from benchmarks.harness.workloads import Case, Lengths, draw_lengths, texts

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress


class StopAfter(TrainerCallback):  # type: ignore[misc]
    """Ends a training after so many steps."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, _: Any, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        """Ask for the end."""
        control.should_training_stop = state.global_step >= self._steps


@dataclass(frozen=True)
class TimedTraining:
    """What was measured.

    Attributes:
        trainer: after its last step.
        lengths: of the pairs of the timed steps.
        seconds: of the timed steps together.
        row: rates, times, memory, losses and what was trained.
    """

    trainer: Any
    lengths: list[Lengths]
    seconds: float
    row: Row


def timed_training(
    system: System,
    load: Callable[[torch.device], Loaded],
    request: Row,
    progress: Progress,
    case: Case,
    vocabulary: int,
    callbacks: Sequence[TrainerCallback] = (),
    **settings: Any,
) -> TimedTraining:
    """Train `warm_up` steps that are not timed, then `timed` ones, as `request` says.

    Args:
        system: whose trainer.
        load: returns the model on a device.
        request: what the child was asked for. With `planned_steps` the trainer has data and a plan for so many steps,
            from which it chooses how to compute, and is stopped after those that are measured.
        progress: is told the phases.
        case: lengths of pairs, and pairs of a step.
        vocabulary: words of the texts.
        callbacks: called after the clock.
        settings: further arguments of the trainer.
    """
    gc.collect()
    steps = request["warm_up"] + request["timed"]
    told = max(steps, request.get("planned_steps") or 0)
    lengths = draw_lengths(case.workload, case.pairs_a_step * told)
    clock = Clock(steps, progress)
    watch = StepWatch(progress) if request.get("watch") else None
    progress.phase("loading the model")
    begun = time.perf_counter()
    device = device_of(system)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    loaded = load(device)
    ready = now()
    at_rest = torch.cuda.memory_allocated() / 2**30 if on_gpu else None
    progress.phase("preparing the trainer")
    trainer = trainer_for(
        system,
        loaded,
        device,
        request["scratch"],
        texts(lengths, vocabulary),
        callbacks=[clock, *([watch] if watch else []), *callbacks, *([StopAfter(steps)] if told > steps else [])],
        per_device_train_batch_size=case.batch,
        gradient_accumulation_steps=case.accumulation,
        max_steps=told,
        **settings,
    )
    if watch is not None:
        watch.attach(trainer)
    trainer.train()
    timed = lengths[case.pairs_a_step * request["warm_up"] : case.pairs_a_step * steps]
    seconds = sum(clock.seconds[request["warm_up"] :])
    row = clock.figures(request["warm_up"], request["timed"], case.pairs_a_step, ready) | {
        "tokens_per_pair": {
            name: round(sum(getattr(pair, name) for pair in timed) / len(timed), 1)
            for name in ("unique", "two_sequences", "scored")
        },
        "load_seconds": round(ready - begun, 2),
        "losses": [round(float(entry["loss"]), 6) for entry in trainer.state.log_history if "loss" in entry],
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "frozen_elements": _frozen_elements(trainer.model),
        "weights_gib": None if at_rest is None else round(at_rest, 3),
        "not_on_fast_path_because": getattr(trainer, "form_reason", None),
        "reference": trainer.reference_counts() if hasattr(trainer, "reference_counts") else {},
        "rows": _rows(trainer) if hasattr(trainer, "execution") else {},
        "recorded_lengths": _recorded_lengths(trainer),
        **peak_gib(),
        **({"steps": watch.steps} if watch else {}),
    }
    return TimedTraining(trainer, timed, seconds, row)


def _rows(trainer: Any) -> Row:
    """Return the token budget of a row, and how many of the layers keep their activations in a row that long."""
    from wishbone.engine.execution import EVERYTHING

    step = getattr(trainer, "preference_step", None)
    if step is None or trainer.execution.room in (None, EVERYTHING):
        return {}
    found = trainer.execution.summary(len(step.policy.layers))
    return {name: found[name] for name in ("token_budget", "layers", "kept_layers")}


def _recorded_lengths(trainer: Any) -> int | None:
    """Return how many lengths of rows are replayed from CUDA graphs; None for a trainer that does not say."""
    if not hasattr(trainer, "execution"):
        return None
    graphs = trainer.execution.graphs
    return getattr(graphs, "recorded", len(graphs.lengths)) if graphs else 0


def _frozen_elements(model: Any) -> dict[str, int]:
    """Count the elements that are not trained, by dtype in memory: two 4-bit weights are one uint8."""
    counts: dict[str, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.requires_grad:
            name = str(tensor.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + tensor.numel()
    return counts
