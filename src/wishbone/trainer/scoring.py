"""TRL's trainer whose step also serves evaluation, prediction and the log.

transformers' loops ask for the loss of a batch and for metrics; both come from `PreferenceStep`, and the metrics keep
TRL's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, has_length
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.data.batch import TokenizedPair, images_of_padded
from wishbone.engine.differentiable import differentiable_loss
from wishbone.engine.distributed import sum_over_processes
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.guard.guard import Guard
from wishbone.model.frozen_copy import StartValues
from wishbone.phases import Phase, phase
from wishbone.preference.metrics import PairMetrics
from wishbone.reference.cache import CachedReference
from wishbone.trainer.evaluation_sets import move_under_set
from wishbone.trainer.finite_losses import FiniteLosses
from wishbone.trainer.later_changes import LaterChanges


class ScoringTrainer(TRLDPOTrainer):  # type: ignore[misc]
    """TRL's trainer with the losses and metrics of Wishbone's step; without a step, TRL's own."""

    preference_step: PreferenceStep | None
    execution: Execution
    guard: Guard | None
    _later_changes: LaterChanges
    _losses: FiniteLosses
    _evaluates = False
    _evaluation: Phase
    _pair_metrics: dict[str, PairMetrics]

    def reference_counts(self) -> dict[str, int]:
        """Return how many reference values of pairs all processes `computed`, and how many they `reused`.

        Empty where values are not cached. Every process must call at the same time.
        """
        reference = self.preference_step.reference if self.preference_step else None
        if not isinstance(reference, CachedReference):
            return {}
        counts = {"reused": reference.reused, "computed": reference.computed}
        return {name: sum_over_processes(count, self.accelerator) for name, count in counts.items()}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of one batch, differentiable where the model is in training mode and gradients are on.

        Evaluation calls it; training goes through `training_step`. With `return_outputs` (`predict()`), also return the
        model's output for the padded batch, with its logits.
        """
        if self.preference_step is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._follow_changes()
        metrics = self._pair_metrics["train" if self.model.training else "eval"]
        if self.model.training and torch.is_grad_enabled():
            loss = differentiable_loss(self.preference_step, [inputs["pairs"]], metrics, self.execution)
        else:
            loss = self._held_out_loss(self.preference_step, inputs["pairs"], metrics)
        if not return_outputs:
            return loss
        padded = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        padded |= images_of_padded(inputs["pairs"], inputs["input_ids"].shape, inputs["input_ids"].device)
        with torch.no_grad():
            return loss, model(**padded, use_cache=False)

    def _follow_changes(self) -> None:
        """Let the step follow what was set on this trainer since it was constructed, or refuse it."""
        if self.preference_step is not None:
            self._later_changes.follow(self, self.preference_step, self._pair_metrics.values())

    def _held_out_loss(self, step: PreferenceStep, pairs: Sequence[TokenizedPair], metrics: PairMetrics) -> Tensor:
        """Return the mean loss of a batch, without the pairs that fill up the last batches of several processes.

        accelerate fills them with pairs from the beginning, and transformers' loop drops as many copies of the losses;
        in a process that has no others, whatever is returned is dropped.
        """
        observe, loader = self.guard.observe if self.guard else None, self.accelerator.gradient_state
        if self._evaluates and loader.end_of_dataloader and loader.remainder > 0:
            own = max(0, loader.remainder - self.accelerator.process_index * len(pairs))
            if own:
                pairs = pairs[:own]
            else:  # a sharded model runs equally often in all processes
                metrics.add_nothing(self.args.device)
                metrics, observe = PairMetrics.like(metrics), None
        return step.evaluate(pairs, metrics, self.execution, observe)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as transformers does; each pair counts once, in one process or in several."""
        batches = args[0] if args else kwargs["dataloader"]
        self._evaluates = True
        try:
            with phase("evaluation", len(batches) if has_length(batches) else None) as self._evaluation:
                return super().evaluation_loop(*args, **kwargs)
        finally:
            self._evaluates = False

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of one batch as transformers does, and tell that it is done."""
        found = super().prediction_step(*args, **kwargs)
        if self._evaluates:
            self._evaluation.more()
        return found

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return TRL's reference log-probabilities of a padded batch, for values that are computed before training."""
        own = {name: inputs[name] for name in inputs if name != "pairs"}
        # TRL's constructor calls this before `_start_values` is set.
        start_values: StartValues | None = getattr(self, "_start_values", None)
        with nullcontext() if start_values is None else start_values.in_place():
            return super().compute_ref_log_probs(model, own)  # type: ignore[no-any-return]

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict as transformers does; the metrics of predicted pairs go into no log."""
        output = super().predict(*args, **kwargs)
        if self.preference_step is not None:
            self._pair_metrics["eval"].read()
        return output

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of a training step on one batch as transformers does, 6 a parameter and token."""
        if self.preference_step is None:
            return int(super().floating_point_ops(inputs))
        tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in inputs["pairs"])
        return 6 * tokens * self._parameters_outside_embeddings

    @cached_property
    def _parameters_outside_embeddings(self) -> int:
        assert self.preference_step is not None
        return int(self.preference_step.policy.causal_lm.num_parameters(exclude_embeddings=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics since the last log, reduced over processes, under TRL's names, and log as TRL does."""
        if self.preference_step is not None:
            mode = "train" if self.model.training else "eval"
            metrics = self._pair_metrics[mode].read(lambda sums: self.accelerator.reduce(sums, "sum"))
            for name, value in metrics.items():
                self._metrics[mode][name] = [value]
            if metrics:
                self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
            if "loss" in logs:
                self._losses.log(self.state.global_step)
            if "train_runtime" in logs:
                logs |= {f"train_reference_{name}": count for name, count in self.reference_counts().items()}
        if not self.model.training:
            move_under_set(logs, self._metrics["eval"], self.eval_dataset)
        super().log(logs, start_time)
