"""What transformers' loops get of Wishbone's step: they hand over batches of pairs, and receive losses and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from wishbone.data.batch import TokenizedPair, images_of_padded
from wishbone.engine.differentiable import differentiable_loss
from wishbone.engine.distributed import fill_gradients, reduce_gradients, sum_over_processes
from wishbone.engine.execution import Execution
from wishbone.engine.oom_retry import backward_that_fits
from wishbone.engine.sharing import Share, share_of
from wishbone.engine.step import PreferenceStep
from wishbone.preference.metrics import PairMetrics
from wishbone.reference.cache import CachedReference
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.collation import Collation
from wishbone.trainer.execution_in_checkpoint import Asked, read_execution, write_execution
from wishbone.trainer.finite_losses import FiniteLosses
from wishbone.trainer.profiling import RunAhead, profiled
from wishbone.trainer.shared_steps import sum_of_losses

Mode = Literal["train", "eval"]


class StepLoop:
    """The step of a run, and what became of the batches that it was given.

    Args:
        step: computes losses and gradients.
        execution: how rows are computed until profiling has chosen.
        collation: the run's pairs.
        args: of the trainer.
        accelerator: of the trainer.

    Attributes:
        step, execution: as they are now.
        metrics: of the pairs since the last log, in training and evaluation.
        losses: as they are logged.
        trained_pairs: what all processes trained on.
        is_profiled: whether how rows are computed was chosen.
    """

    def __init__(
        self,
        step: PreferenceStep,
        execution: Execution,
        collation: Collation,
        args: DPOConfig,
        accelerator: Accelerator,
    ) -> None:
        self.step, self.execution = step, execution
        self.metrics: dict[Mode, PairMetrics] = {"train": PairMetrics(args.beta), "eval": PairMetrics(args.beta)}
        self.losses = FiniteLosses()
        self.trained_pairs = 0
        self._collation, self._args, self._accelerator = collation, args, accelerator
        self._batches: list[list[TokenizedPair]] = []
        self.is_profiled = False

    @property
    def shared(self) -> bool:
        """Whether processes share out the pairs of each step."""
        return self._args.shared_steps and self._accelerator.num_processes > 1

    @property
    def collected(self) -> list[TokenizedPair]:
        """Pairs of the optimizer step that is being collected."""
        return [pair for batch in self._batches for pair in batch]

    def restart(self) -> None:
        """Drop the batches of a step that was interrupted."""
        self._batches = []

    def collect(self, batch: list[TokenizedPair]) -> int:
        """Take a batch of the next optimizer step; return how many it has now."""
        self._batches.append(batch)
        return len(self._batches)

    def profile(self, rows: Any, steps: int, continued: Path | None) -> None:
        """Choose how rows are computed, before the first step.

        Args:
            rows: the training data set.
            steps: how many are left.
            continued: the checkpoint that the run continues from, or None.
        """
        self.is_profiled = True
        recorded = None if continued is None else read_execution(continued, self._args.process_index, self._asked())
        ahead = RunAhead(rows, self._collation, self.collected, steps, recorded)
        self.execution = profiled(self.step, self.execution, self._args, ahead)

    def write_execution(self, checkpoint: Path) -> None:
        """Add how this process computes rows to a checkpoint that is being written."""
        write_execution(checkpoint, self._args.process_index, self.execution, self._asked())

    def _asked(self) -> Asked:
        return Asked.of(self._args, self.step.policy.device, self._accelerator.num_processes)

    def compute_gradients(
        self, *, whole: int, trained: Sequence[Tensor], offloaded: AbstractContextManager[None]
    ) -> tuple[Tensor, int]:
        """Compute the gradients of the collected batches, reduced over processes, and add them to the parameters.

        Args:
            whole: batches of a step that no callback ends early; fewer have that share of a step's loss, as in TRL.
            trained: the parameters that are trained.
            offloaded: context of TRL's `activation_offloading`.

        Returns:
            The loss, a detached scalar, and the tokens of all processes; a pair's are those of its two sequences.
        """
        step, metrics, accelerator = self.step, self.metrics["train"], self._accelerator
        pairs = self.collected
        batches, self._batches = self._batches, []
        counts = [len(pairs), sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)]
        part, processes = Share(batches), accelerator.num_processes
        if self.shared:
            process = accelerator.process_index
            part = share_of(batches, whole_groups=step.couples, processes=processes, process=process)
        else:
            counts = [sum_over_processes(count, accelerator) for count in counts]
        self.trained_pairs += counts[0]
        factor = scale = len(batches) / whole * part.scale
        if step.policy.sharded and self.shared:
            factor *= processes  # FSDP takes the mean of what must be added up

        def backward(loss: Tensor) -> None:
            accelerator.backward(factor * loss)

        loss = torch.zeros((), device=accelerator.device)
        if part.is_empty:
            metrics.add_nothing(accelerator.device)
        if step.policy.sharded:
            loss = step.backward(part.groups, metrics, self.execution, backward, part.indices)
            fill_gradients(step.policy.model)
        else:
            if not part.is_empty:
                with offloaded:
                    loss, self.execution = backward_that_fits(
                        step, part.groups, metrics, self.execution, backward, trained, part.indices
                    )
            reduce_gradients(step.policy.model, accelerator, mean=not self.shared)
        loss = scale * loss
        return (sum_of_losses(loss, accelerator) if self.shared else loss), counts[1]

    def differentiable_loss(self, pairs: list[TokenizedPair]) -> Tensor:
        """Return the loss of a training batch, a scalar with a graph."""
        return differentiable_loss(self.step, [pairs], self.metrics["train"], self.execution)

    def loss(
        self,
        pairs: Sequence[TokenizedPair],
        mode: Mode,
        *,
        observe: Callable[..., None] | None = None,
        evaluates: bool = False,
    ) -> Tensor:
        """Return the mean loss of a batch without a graph.

        In an evaluation by several processes, accelerate fills up the last batches with pairs from the beginning, and
        transformers drops as many copies of the losses. These pairs are left out; in a process that has no others,
        whatever is returned is dropped.

        Args:
            pairs: the batch.
            mode: whose metrics receive the pairs.
            observe: is told the scores of the pairs, or None.
            evaluates: whether the batch is from the data loader of an evaluation.
        """
        metrics, loader = self.metrics[mode], self._accelerator.gradient_state
        if evaluates and loader.end_of_dataloader and loader.remainder > 0:
            own = max(0, loader.remainder - self._accelerator.process_index * len(pairs))
            if own:
                pairs = pairs[:own]
            else:  # a sharded model runs equally often in all processes
                metrics.add_nothing(self._accelerator.device)
                metrics, observe = PairMetrics.like(metrics), None
        return self.step.evaluate(pairs, metrics, self.execution, observe)

    def read_metrics(self, mode: Mode) -> dict[str, float]:
        """Return the metrics since the last call, reduced over processes, under TRL's names."""
        return self.metrics[mode].read(lambda sums: self._accelerator.reduce(sums, "sum"))

    def reference_counts(self) -> dict[str, int]:
        """Return how many reference values all processes `computed` and `reused`; empty where none are cached."""
        reference = self.step.reference
        if not isinstance(reference, CachedReference):
            return {}
        counts = {"reused": reference.reused, "computed": reference.computed}
        return {name: sum_over_processes(count, self._accelerator) for name, count in counts.items()}

    def operations(self, pairs: Sequence[TokenizedPair]) -> int:
        """Estimate the operations of a training step on a batch as transformers does, 6 a parameter and token."""
        return 6 * sum(len(pair.chosen) + len(pair.rejected) for pair in pairs) * self._parameters

    @cached_property
    def _parameters(self) -> int:
        return int(self.step.policy.causal_lm.num_parameters(exclude_embeddings=True))


@torch.no_grad()
def output_for(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """Return a model's output for a padded batch with `pairs`, with its logits."""
    padded = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    padded |= images_of_padded(inputs["pairs"], inputs["input_ids"].shape, inputs["input_ids"].device)
    return model(**padded, use_cache=False)
