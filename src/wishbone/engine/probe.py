"""Time and memory of single rows, run forward and backward with synthetic pairs before the first step.

Weights, optimizer, random numbers, metrics and what is stored of the reference stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.preference.metrics import PairMetrics
from wishbone.reference.cache import CachedReference
from wishbone.reference.reference import NoReference, ReferencePolicy, Stored

HOST_BOUND = 0.85
"""Share of a row's time until its last kernel is launched, from which on the host may be the limit."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one row: `total`, and until its last kernel was launched."""

    total: float
    launched: float

    @property
    def host_bound(self) -> bool:
        """Whether the GPU may wait for the host, so that a shorter row would take as long."""
        return self.launched >= HOST_BOUND * self.total


class RowProbe:
    """Runs single rows of a step's model on its GPU, computed as an `Execution` says.

    Args:
        step: the step of the run, whose model has no gradients.
        longest: tokens of the run's longest pair in a row; models may have no more positions.
        images: pairs of the run that have images, of which rows are made where they fit.
    """

    def __init__(self, step: PreferenceStep, longest: int, images: Sequence[TokenizedPair] = ()) -> None:
        self.policy = step.policy
        self._step = PreferenceStep(step.policy, _uncached(step.reference), step.objective)
        self._longest, self._images = longest, images
        self._vocabulary = step.policy.causal_lm.config.get_text_config().vocab_size

    def run(self, tokens: int, execution: Execution) -> None:
        """Run one row of so many tokens forward and backward and drop its gradients.

        Raises:
            torch.OutOfMemoryError: the row does not fit.
        """
        pairs = made_up_row(tokens, self._longest, self._vocabulary, self._images)
        try:
            self._step.backward([pairs], PairMetrics(1.0), replace(execution, token_budget=tokens))
        finally:
            for parameter in self.policy.model.parameters():
                parameter.grad = None

    def at_rest(self) -> int:
        """Return the bytes that are allocated while no row is run."""
        return torch.cuda.memory_allocated(self.policy.device)

    def peak(self, tokens: int, execution: Execution) -> int | None:
        """Return the peak of allocated bytes of a row, or None where it does not fit into the GPU's memory."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.policy.device)
        try:
            self.run(tokens, execution)
        except torch.OutOfMemoryError:
            return None
        return torch.cuda.max_memory_allocated(self.policy.device)

    def timing(self, tokens: int, execution: Execution) -> Timing:
        """Return how long a row takes when it is run for the second time.

        Raises:
            torch.OutOfMemoryError: the row does not fit.
        """
        self.run(tokens, execution)
        torch.cuda.synchronize()
        start = time.perf_counter()
        self.run(tokens, execution)
        launched = time.perf_counter() - start
        torch.cuda.synchronize()
        return Timing(time.perf_counter() - start, launched)


def _uncached(reference: ReferencePolicy) -> ReferencePolicy:
    """The reference for synthetic pairs: none of its values is stored, and none is looked up."""
    if isinstance(reference, CachedReference):
        return reference.inner
    return NoReference() if isinstance(reference, Stored) else reference


def made_up_row(
    tokens: int, longest: int, vocabulary: int, images: Sequence[TokenizedPair] = ()
) -> list[TokenizedPair]:
    """Return pairs that fill a row of `tokens`, none longer than `longest`.

    Prompts have one token, because scored tokens take the most memory. In a run with images the row is filled with
    pairs that have some, as often as they fit, because patches and the activations of a trained tower take memory too.
    """
    pairs: list[TokenizedPair] = []
    for pair in sorted(images, key=lambda pair: pair.row_tokens, reverse=True):
        times = tokens // pair.row_tokens
        pairs += [pair] * times
        tokens -= times * pair.row_tokens
    longest = min(tokens, max(longest, 3))
    sizes = [longest] * (tokens // longest) + [tokens % longest] if tokens else []
    return pairs + [_made_up_pair(size, vocabulary) for size in sizes if size > 2]


def _made_up_pair(row_tokens: int, vocabulary: int) -> TokenizedPair:
    half = (row_tokens - 1) // 2
    ids = [(17 + 31 * i) % vocabulary for i in range(1 + half)]
    other = [(5 + 13 * i) % vocabulary for i in range(row_tokens - 1 - half)]
    return TokenizedPair(ids, ids[:1] + other, 1, 1)
