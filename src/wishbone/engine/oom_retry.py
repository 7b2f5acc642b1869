"""When memory runs out all the same: the step is computed again with less memory, and its result is the same.

How pairs are laid into rows and which activations are kept changes memory and speed, never the loss or the gradients.
So a step that ran out of memory is repeated from its beginning: without recorded passes, which hold memory; with fewer
layers kept and at last every layer recomputed; with half the tokens a row as often as it takes; with the layers' inputs
in host memory. What helped stays for the rest of the run. Only a pair that does not fit alone is left to whoever can
make it smaller.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from wishbone.engine.step import Backward, Groups, PreferenceStep
from wishbone.policy.activations import EVERYTHING, NOTHING
from wishbone.preference.metrics import PairMetrics

logger = logging.getLogger(__name__)


def backward_that_fits(
    step: PreferenceStep, groups: Groups, metrics: PairMetrics, backward: Backward, trained: Sequence[Tensor]
) -> Tensor:
    """`step.backward`, again with less memory as often as memory runs out.

    Args:
        step: what is computed.
        groups: as `PreferenceStep.backward` takes them.
        metrics: receives every pair once, however often a step is repeated.
        backward: as `PreferenceStep.backward` takes it.
        trained: the parameters that are trained.

    Raises:
        RuntimeError: memory ran out with one pair a row, or with gradients of earlier batches that cannot be repeated.
    """
    repeatable = all(parameter.grad is None for parameter in trained)
    while True:
        watched = PairMetrics.like(metrics)
        try:
            loss = step.backward(groups, watched, backward)
        except RuntimeError as error:
            if not (should_reduce_batch_size(error) and repeatable):
                raise
            remedy = _take_less(step, groups)
            if remedy is None:
                raise
        else:
            metrics.absorb(watched)
            return loss
        for parameter in trained:
            parameter.grad = None
        clear_device_cache(garbage_collection=True)
        logger.warning("Memory ran out; %s. The result is the same.", remedy)


def _take_less(step: PreferenceStep, groups: Groups) -> str | None:
    """Change the next thing that makes rows smaller in memory and say what it was; None if nothing is left."""
    if step.policy.recorded is not None:
        step.policy.recorded = None
        return "passes are run from now on, not replayed"
    activations = step.policy.activations
    sizes = [pair.row_tokens for group in groups for pair in group]
    largest_row = min(step.token_budget, sum(sizes))
    if activations is not None and activations.room not in (None, EVERYTHING, NOTHING):
        layers = len(activations.layers)
        if activations.room.layers(largest_row) > 0:
            activations.room = activations.room.with_fewer(largest_row, layers)
            kept = activations.room.layers(largest_row)
            return f"of a row of {largest_row} tokens {kept} of {layers} layers are kept from now on"
        activations.room = NOTHING
        return "activations of all layers are recomputed from now on"
    if largest_row > max(sizes):
        step.token_budget = max(max(sizes), largest_row // 2)
        return f"rows now have at most {step.token_budget} tokens"
    if activations is not None and activations.offload == "as needed":
        activations.offload = "always"
        step.policy.save_memory()
        return "inputs of layers wait in host memory from now on"
    return None
