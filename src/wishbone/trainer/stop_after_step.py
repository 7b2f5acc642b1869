"""Ends training after the step during which a signal arrived, with a checkpoint.

Under torchrun each process gets the signal at a moment of its own, or only one gets it. So they agree at the end of
each step: all stop after the same one. What was due at that step (a log, an evaluation, a checkpoint) is done as in a
run that goes on, so that the resumed run continues from the same state.
"""

from __future__ import annotations

import signal
from typing import Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy


class Signals(Protocol):
    """Which signal asked this process to stop.

    Attributes:
        received: the first signal, or None.
    """

    received: signal.Signals | None

    @property
    def asked(self) -> int:
        """Number of the signal for which training is to save and return, or 0."""
        ...


class StopAfterStep(TrainerCallback):  # type: ignore[misc]
    """Asks the trainer to save and stop; it comes after all callbacks that ask for evaluations and checkpoints."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._saved_at = -1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Stop after this step, but at the end of an epoch only after its evaluations and checkpoints."""
        if self._agreed(args):
            control.should_training_stop = control.should_log = True
            control.should_save |= not _epoch_ended(state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Stop after an evaluation during which the signal arrived."""
        if self._agreed(args):
            control.should_training_stop = True
            control.should_save |= self._saved_at != state.global_step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Stop after a checkpoint during which the signal arrived."""
        self._saved_at = state.global_step
        control.should_training_stop |= bool(self._agreed(args))

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Called also when training stops within an epoch; the epoch has ended only if all its pairs were used."""
        if not self._agreed(args):
            return
        control.should_training_stop = True
        if not _epoch_ended(state):
            control.should_evaluate = control.should_save = False
        elif args.save_strategy != SaveStrategy.EPOCH:
            control.should_save = self._saved_at != state.global_step

    def _agreed(self, args: TrainingArguments) -> int:
        """Number of the signal that any process got, or 0."""
        asked = self._signals.asked
        if args.world_size > 1 and torch.distributed.is_initialized():
            highest = torch.tensor(asked, device=args.device)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
            asked = int(highest.item())
            if asked and self._signals.received is None:
                self._signals.received = signal.Signals(asked)
        return asked


def _epoch_ended(state: TrainerState) -> bool:
    return state.epoch is not None and float(state.epoch).is_integer()
