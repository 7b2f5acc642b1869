"""TRL's trainer whose loops of training, evaluation and prediction run by Wishbone's step, if the run has one.

Each method below is one that the loops call. It hands on what it was given: batches to the `StepLoop`, losses and norms
to the `FiniteWatch`. Without a step it does as TRL does.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, has_length
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.engine.execution import UNLIMITED, Execution
from wishbone.engine.step import PreferenceStep
from wishbone.errors import RequestError
from wishbone.guard.guard import Guard
from wishbone.model.frozen_copy import StartValues
from wishbone.phases import Phase, phase
from wishbone.trainer.evaluation_sets import move_under_set
from wishbone.trainer.later_changes import DROPOUT, LaterChanges
from wishbone.trainer.non_finite import FiniteWatch
from wishbone.trainer.shared_steps import read_every_batch
from wishbone.trainer.start_check import cannot_be_checked, check_start, check_start_on_trl_path
from wishbone.trainer.step_loop import Mode, StepLoop, output_for
from wishbone.trainer.trl_path import drops_out, noise_reason


class SteppedTrainer(TRLDPOTrainer):  # type: ignore[misc]
    """TRL's trainer with a loop of steps; who constructs it sets the attributes.

    Attributes:
        loop: takes the batches, or None where the run needs TRL's own path.
        finite: looks at losses and gradients.
        later_changes: what a script may set on a trainer with a loop.
        guard: what watches the run, or None.
        start_values: trained parameters of an adapter's base, with the values that they have in the reference, or None.
        start_is_checked: whether policy and reference need not be compared before the first step.
        continued: the checkpoint that training continued from, or None.
    """

    loop: StepLoop | None = None
    finite: FiniteWatch
    later_changes: LaterChanges
    guard: Guard | None = None
    start_values: StartValues | None = None
    start_is_checked = False
    continued: Path | None
    _evaluation: Phase | None = None

    @property
    def preference_step(self) -> PreferenceStep | None:
        """What computes loss and gradients, or None where the run needs TRL's own path."""
        return None if self.loop is None else self.loop.step

    @property
    def execution(self) -> Execution:
        """How the step computes rows now: as the settings ask, then as profiling found, then as memory allowed."""
        return UNLIMITED if self.loop is None else self.loop.execution

    @property
    def trained_pairs(self) -> int:
        """What all processes trained on since construction, by the step."""
        return 0 if self.loop is None else self.loop.trained_pairs

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Collect the batches of one optimizer step; with the last one, compute its loss and gradients."""
        loop, number = self.loop, self.state.global_step + 1
        if loop is None:
            self._check_start(inputs)
            return self.finite.see_loss(super().training_step(model, inputs, num_items_in_batch), number)
        if not (model.training and self.model.training):  # DDP's wrapper stays in its mode when the model is evaluated
            model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        whole = self.current_gradient_accumulation_steps
        # A stream may end before a step is complete; its last batches then count towards the next step, as in TRL.
        if loop.collect(inputs["pairs"]) < whole and not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        self.later_changes.follow(self, loop.step, loop.metrics.values())
        if not loop.is_profiled:
            if drops_out(self.model) or noise_reason(self.model):
                raise RequestError(DROPOUT)
            steps = self.state.max_steps - self.state.global_step
            loop.profile(self.train_dataset, steps, self.continued)
        self._check_start(inputs)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        loss, tokens = loop.compute_gradients(
            whole=whole, trained=trained, offloaded=self.maybe_activation_offload_context
        )
        self._total_train_tokens += tokens
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return loop.losses.logged(self.finite.see_loss(loss.to(self.args.device), number), self.state.global_step)

    def _check_start(self, inputs: dict[str, Any]) -> None:
        """Before the first optimizer step, refuse a run whose reference is not the model that training starts from."""
        if self.start_is_checked or self.state.global_step:
            return
        self.start_is_checked = True
        if self.loop is not None:
            check_start(self.loop.step, self.loop.collected, self.loop.execution)
        elif not cannot_be_checked(self):
            check_start_on_trl_path(self, super().compute_loss, inputs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of this process; all batches where processes share out a step."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        if self.readers > 1:
            read_every_batch(loader)
        return loader

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return transformers' norm of all gradients; note on its device whether it is finite."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.finite.see_gradients(norm, self.state.global_step + 1, self.accelerator.scaler)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of one batch, differentiable where the model is in training mode and gradients are on.

        Evaluation calls it; training goes through `training_step`. With `return_outputs` (`predict()`), also return the
        model's output for the padded batch, with its logits.
        """
        loop, trains = self.loop, self.model.training
        if loop is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.later_changes.follow(self, loop.step, loop.metrics.values())
        if trains and torch.is_grad_enabled():
            loss = loop.differentiable_loss(inputs["pairs"])
        else:
            observe, evaluates = None if self.guard is None else self.guard.observe, self._evaluation is not None
            loss = loop.loss(inputs["pairs"], "train" if trains else "eval", observe=observe, evaluates=evaluates)
        return (loss, output_for(model, inputs)) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as transformers does; each pair counts once, in one process or in several."""
        batches = args[0] if args else kwargs["dataloader"]
        try:
            with phase("evaluation", len(batches) if has_length(batches) else None) as self._evaluation:
                return super().evaluation_loop(*args, **kwargs)
        finally:
            self._evaluation = None

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of one batch as transformers does, and tell that it is done."""
        found = super().prediction_step(*args, **kwargs)
        if self._evaluation is not None:
            self._evaluation.more()
        return found

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict as transformers does; the metrics of predicted pairs go into no log."""
        output = super().predict(*args, **kwargs)
        if self.loop is not None:
            self.loop.metrics["eval"].read()
        return output

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return TRL's reference log-probabilities of a padded batch, for values that are computed before training."""
        own = {name: inputs[name] for name in inputs if name != "pairs"}
        with nullcontext() if self.start_values is None else self.start_values.in_place():
            return super().compute_ref_log_probs(model, own)  # type: ignore[no-any-return]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics since the last log, reduced over processes, under TRL's names, and log as TRL does.

        TRL's log waits for the device; then what was noted there of losses and gradients is read.
        """
        if self.loop is not None:
            mode: Mode = "train" if self.model.training else "eval"
            metrics: dict[str, float] = self.loop.read_metrics(mode)
            self._metrics[mode].update({name: [value] for name, value in metrics.items()})
            if metrics:
                self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
            if "loss" in logs:
                self.loop.losses.log(self.state.global_step)
            if "train_runtime" in logs:
                logs |= {f"train_reference_{name}": count for name, count in self.reference_counts().items()}
        if not self.model.training:
            move_under_set(logs, self._metrics["eval"], self.eval_dataset)
        super().log(logs, start_time)
        if self.model.training:
            self.finite.check()

    def reference_counts(self) -> dict[str, int]:
        """Return how many reference values of pairs all processes `computed`, and how many they `reused`.

        Empty where values are not cached. Every process must call at the same time.
        """
        return {} if self.loop is None else self.loop.reference_counts()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of a training step on one batch as transformers does; they are added up later."""
        if self.loop is None:
            return int(super().floating_point_ops(inputs))
        counted = self.readers == 1 or self.is_world_process_zero()
        return self.loop.operations(inputs["pairs"]) if counted else 0

    @property
    def readers(self) -> int:
        """How many processes read each batch; transformers counts it for each of them."""
        return self.accelerator.num_processes if self.loop is not None and self.loop.shared else 1

    def get_total_train_batch_size(self, args: Any) -> int:
        """Return the pairs of an optimizer step of all processes."""
        return int(super().get_total_train_batch_size(args)) // self.readers

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count the tokens of a batch as transformers does, once."""
        before = self.state.num_input_tokens_seen
        super()._track_num_input_tokens(inputs)
        self.state.num_input_tokens_seen = before + (self.state.num_input_tokens_seen - before) // self.readers
