"""Compiles the kernels of a run's first step in threads, while the model is being tested.

Which kernels a step launches follows from the model, its adapter and its weights. So before the trials, a short
synthetic row is run through a few of the model's layers, forward and backward, with kernels compiled in threads instead
of launched (`ops/compiled_ahead.py`). The trials that choose how rows are run take some seconds of this thread;
meanwhile the kernels are compiled. Other kernels are compiled at their first launch, as usual.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.fused.linear import FusedLinears
from wishbone.fused.norm import FusedNorms
from wishbone.fused.parts import part_of, text_layers
from wishbone.fused.quantized_input import QuantizedInput
from wishbone.model.host_embedding import compute_device
from wishbone.ops.compiled_ahead import can_compile_ahead, handed_over
from wishbone.policy.activations import checkpointed_layers
from wishbone.policy.capability import IMPOSSIBLE, trial_pairs
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics

logger = logging.getLogger(__name__)


def compile_ahead(step: PreferenceStep) -> None:
    """Start to compile the kernels of a step on a GPU; model and random state do not change.

    Experts and recurrent layers are left out: the sizes of their kernels depend on values, which are synthetic here.

    Args:
        step: its policy in the form "shared_prefix", with fused layers; its model has no gradients.
    """
    policy = step.policy
    by_values = policy.fused is None or any(policy.fused.experts.sites()) or bool(policy.recurrence.covered)
    if policy.sharded or by_values or not can_compile_ahead(policy.device):
        return
    with handed_over():
        run_through(step)


def compile_trial_kernels(model: nn.Module) -> None:
    """Start to compile the kernels with which `FusedLayers` tests norms and MLPs; the model does not change.

    Args:
        model: a transformers model, with or without PEFT's adapters; on a CPU nothing is compiled.
    """
    if not can_compile_ahead(compute_device(model)):
        return
    layers = checkpointed_layers(text_layers(model)[1])
    kinds = {part_of(module) for module in layers[0].modules()} if layers else {"experts"}
    if kinds.isdisjoint({"experts", "recurrence"}):
        quantized = QuantizedInput()
        with handed_over(), _failures_ignored():
            FusedNorms(layers[0], quantized=quantized)
            FusedLinears(layers[0], quantized)


def run_through(step: PreferenceStep) -> None:
    """Run a short row as trials and steps do, only to request its kernels; all results are dropped."""
    policy = step.policy
    model = policy.model
    pairs = trial_pairs(policy.causal_lm.config.get_text_config().vocab_size)
    pairs = [replace(pair, ref_chosen_logps=0.0, ref_rejected_logps=0.0) for pair in pairs]
    was_training = model.training
    model.eval()
    try:
        forked = torch.random.fork_rng([policy.device] if policy.device.type == "cuda" else [])
        with _failures_ignored(), forked, few_layers(policy):
            batch = policy.collate(pairs)
            step.reference.logps(batch)
            with torch.no_grad(), policy.running():
                policy.token_scores(batch, statistics=False)
                policy.token_scores(batch)
            step.backward([pairs], PairMetrics(1.0), Execution(batch.tokens))
    finally:
        model.train(was_training)
        for parameter in model.parameters():
            parameter.grad = None


@contextmanager
def _failures_ignored() -> Iterator[None]:
    """Context of an optional pass: its failures are only logged, because the trials report them with their reason."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, *IMPOSSIBLE) as error:
        logger.debug("Not all kernels of the first step are compiled ahead: %s", error)


@contextmanager
def few_layers(policy: Policy) -> Iterator[None]:
    """Context in which a model runs its first layers, if its code allows that: two at least, and one of each kind."""
    config: Any = policy.causal_lm.config.get_text_config()
    layers: int = config.num_hidden_layers
    kinds = list(getattr(config, "layer_types", None) or ["full_attention"])
    config.num_hidden_layers = min(layers, max(2, 1 + max(map(kinds.index, kinds))))
    try:
        yield
    finally:
        config.num_hidden_layers = layers
