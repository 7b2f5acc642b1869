"""The gradients of one optimizer step: this process's share of its pairs, reduced over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from torch import Tensor

from wishbone.data.batch import TokenizedPair
from wishbone.engine.distributed import fill_gradients, reduce_gradients
from wishbone.engine.execution import Execution
from wishbone.engine.oom_retry import backward_that_fits
from wishbone.engine.sharing import Share, share_of
from wishbone.engine.step import PreferenceStep
from wishbone.preference.metrics import PairMetrics
from wishbone.trainer.shared_steps import sum_of_losses


def gradients_of_step(
    step: PreferenceStep,
    groups: list[list[TokenizedPair]],
    metrics: PairMetrics,
    execution: Execution,
    *,
    accelerator: Accelerator,
    shared: bool,
    whole: int,
    trained: Sequence[Tensor],
    offloaded: AbstractContextManager[None],
) -> tuple[Tensor, Execution]:
    """Compute the gradients of an optimizer step and add them to the parameters.

    Args:
        step: what is computed.
        groups: the batches of the step; of this process, or of all of them if `shared`.
        metrics: receives every pair of this process once.
        execution: how rows are computed.
        accelerator: of the trainer.
        shared: whether processes share out the pairs of the step.
        whole: batches of a step that no callback ends early; the loss of fewer is that share of a step's, as in TRL.
        trained: the parameters that are trained.
        offloaded: context of TRL's `activation_offloading`.

    Returns:
        The loss, a detached scalar, and the execution that fitted.
    """
    processes, part = accelerator.num_processes, Share(groups)
    if shared:
        part = share_of(groups, whole_groups=step.couples, processes=processes, process=accelerator.process_index)
    scale = len(groups) / whole * part.scale
    loss = torch.zeros((), device=accelerator.device)
    if part.is_empty:
        metrics.add_nothing(accelerator.device)
    if step.policy.sharded:
        factor = scale * (processes if shared else 1)  # FSDP takes the mean of what must be added up
        loss = step.backward(
            part.groups, metrics, execution, lambda loss: accelerator.backward(factor * loss), part.indices
        )
        fill_gradients(step.policy.model)
    else:
        if not part.is_empty:
            with offloaded:
                loss, execution = backward_that_fits(
                    step,
                    part.groups,
                    metrics,
                    execution,
                    lambda loss: accelerator.backward(scale * loss),
                    trained,
                    part.indices,
                )
        reduce_gradients(step.policy.model, accelerator, mean=not shared)
    loss = scale * loss
    return (sum_of_losses(loss, accelerator) if shared else loss), execution
