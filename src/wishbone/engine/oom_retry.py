"""If memory runs out in a step, the step is computed again with less memory and the same result.

A step that ran out of memory is repeated from its beginning with the next smaller `Execution`, as often as memory runs
out. The execution that fitted stays for the rest of the run. A pair that does not fit alone, with everything given up,
ends the run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from wishbone.data.packing import pack_rows
from wishbone.engine.execution import Execution
from wishbone.engine.step import Backward, Groups, PreferenceStep
from wishbone.preference.metrics import PairMetrics

logger = logging.getLogger(__name__)


def backward_that_fits(
    step: PreferenceStep,
    groups: Groups,
    metrics: PairMetrics,
    execution: Execution,
    backward: Backward,
    trained: Sequence[Tensor],
    indices: Sequence[int] | None = None,
) -> tuple[Tensor, Execution]:
    """Run `step.backward`, and repeat it with less memory whenever memory runs out.

    Args:
        step: what is computed.
        groups, backward, indices: as `PreferenceStep.backward` takes them.
        metrics: receives every pair once, however often a step is repeated.
        execution: how rows are computed at first.
        trained: the parameters that are trained.

    Returns:
        The loss, a detached scalar, and the execution that fitted.

    Raises:
        RuntimeError: memory ran out with nothing left to give up, or with gradients of earlier batches, which cannot be
            computed again.
    """
    repeatable = all(parameter.grad is None for parameter in trained)
    while True:
        watched = PairMetrics.like(metrics)
        try:
            loss = step.backward(groups, watched, execution, backward, indices)
        except RuntimeError as error:
            if not (should_reduce_batch_size(error) and repeatable):
                raise
            less = _smaller(execution, groups, indices, len(step.policy.layers))
            if less is None:
                raise
        else:
            metrics.absorb(watched)
            return loss, execution
        if execution.graphs is not None and less[0].graphs is None:
            execution.graphs.release()
        execution, given_up = less
        for parameter in trained:
            parameter.grad = None
        clear_device_cache(garbage_collection=True)
        logger.warning("Memory ran out: %s. The result is the same.", given_up)


def _smaller(
    execution: Execution, groups: Groups, indices: Sequence[int] | None, layers: int
) -> tuple[Execution, str] | None:
    """The next smaller execution for the rows of a step, and what it gives up."""
    pairs = [pair.row_tokens for group in groups for pair in group]
    pairs = pairs if indices is None else [pairs[i] for i in indices]
    rows = [sum(pairs[i] for i in row) for row in pack_rows(pairs, execution.token_budget)]
    return execution.smaller(rows, max(pairs), layers)
