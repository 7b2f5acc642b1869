"""Rows of made-up pairs, run forward and backward before the first step to see what they take.

Weights, optimizer, random numbers, metrics and what is stored of the reference stay as they are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from wishbone.data.batch import TokenizedPair
from wishbone.engine.step import PreferenceStep
from wishbone.policy.activations import Activations
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.reference.cache import CachedReference
from wishbone.reference.reference import NoReference, ReferencePolicy, Stored

WAITING = 0.85
"""Share of a row's time after which its last kernel is launched, from which on the host may be what limits."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one row: `total`, and until its last kernel was launched."""

    total: float
    launched: float

    @property
    def waits(self) -> bool:
        """Whether the GPU may wait for the host, so that a shorter row would take as long."""
        return self.launched >= WAITING * self.total


class Trial:
    """Runs rows of a step's model on its GPU.

    Args:
        step: the step of the run, whose model has no gradients.
        longest: tokens of the run's longest pair in a row; models may have no more positions.
    """

    def __init__(self, step: PreferenceStep, longest: int) -> None:
        self.policy: Policy = step.policy
        self._step = PreferenceStep(step.policy, _unrecorded(step.reference), step.objective, step.token_budget)
        self._longest = longest
        self._vocabulary = step.policy.causal_lm.config.get_text_config().vocab_size

    @property
    def activations(self) -> Activations:
        """How the model's activations are treated.

        Raises:
            ValueError: they are not Wishbone's to treat.
        """
        if self.policy.activations is None:
            raise ValueError("the policy's activations are left as they are")
        return self.policy.activations

    def run(self, tokens: int) -> None:
        """Run one row of so many tokens forward and backward and forget its gradients."""
        self._step.token_budget = tokens
        try:
            self._step.backward([made_up_row(tokens, self._longest, self._vocabulary)], PairMetrics(1.0))
        finally:
            for parameter in self.policy.model.parameters():
                parameter.grad = None

    def peak(self, tokens: int) -> int:
        """Return the peak of allocated bytes of a row.

        Raises:
            torch.OutOfMemoryError: the row does not fit.
        """
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.policy.device)
        self.run(tokens)
        return torch.cuda.max_memory_allocated(self.policy.device)

    def fits(self, tokens: int) -> bool:
        """Whether a row fits into the GPU's memory."""
        try:
            self.peak(tokens)
        except torch.OutOfMemoryError:
            return False
        return True

    def timing(self, tokens: int) -> Timing:
        """Return how long a row takes when it is run for the second time."""
        self.run(tokens)
        torch.cuda.synchronize()
        start = time.perf_counter()
        self.run(tokens)
        launched = time.perf_counter() - start
        torch.cuda.synchronize()
        return Timing(time.perf_counter() - start, launched)


def _unrecorded(reference: ReferencePolicy) -> ReferencePolicy:
    """The reference for pairs that no data set has: nothing is remembered of them, and nothing is stored for them."""
    if isinstance(reference, CachedReference):
        return reference.inner
    return NoReference() if isinstance(reference, Stored) else reference


def made_up_row(tokens: int, longest: int, vocabulary: int) -> list[TokenizedPair]:
    """Return pairs that fill a row of `tokens`, none longer than `longest`.

    Prompts are of one token, as what is scored takes the most memory.
    """
    longest = min(tokens, max(longest, 3))
    sizes = [longest] * (tokens // longest) + [tokens % longest]
    return [_made_up_pair(size, vocabulary) for size in sizes if size > 2]


def _made_up_pair(row_tokens: int, vocabulary: int) -> TokenizedPair:
    half = (row_tokens - 1) // 2
    ids = [(17 + 31 * i) % vocabulary for i in range(1 + half)]
    other = [(5 + 13 * i) % vocabulary for i in range(row_tokens - 1 - half)]
    return TokenizedPair(ids, ids[:1] + other, 1, 1)
