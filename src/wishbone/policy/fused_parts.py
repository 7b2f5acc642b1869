"""Which parts of a policy run fused: seen in one pass over the pairs that `capability.py` makes up.

What a layer does is known once it has run: a rotary embedding is compared with ours at its first call, and an adapter
with dropout is one only in training. So the model runs once, in the mode in which it will run. Weights, gradients and
the random state stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import PretrainedConfig

from wishbone.fused.coverage import NO_GPU, Coverage, Site
from wishbone.fused.layers import FusedLayers
from wishbone.fused.parts import part_of, text_layers
from wishbone.model.adapter import add_adapter
from wishbone.model.small_model import IMPOSSIBLE, not_small, small_model
from wishbone.policy.capability import choose_form, trial_pairs
from wishbone.policy.policy import Policy

NO_FORM = "there is no fused form of them yet"
HEAD_OF_MODULES = "an adapter or a trained copy is on it, which computes the logits"


def coverage_of(policy: Policy, form_reason: str | None = None, *, training: bool = True) -> Coverage:
    """Return which parts of a policy's model run fused, on how many layers, and why not on the others.

    Args:
        policy: as it will run; with fused layers it runs once.
        form_reason: why it does not run in its fast form, or None.
        training: whether it will run in training mode.
    """
    if policy.fused is not None:
        _run_once(policy, training)
    return Coverage.of(_sites(policy, form_reason))


def coverage_of_architecture(config: PretrainedConfig) -> Coverage:
    """Return which parts of a model would run fused on a CUDA GPU, with LoRA on all of its linear layers.

    A small model of the same architecture runs once in float32, which takes seconds and reads no weights.

    Args:
        config: the model's configuration.

    Raises:
        RequestError: the architecture does not run with small layers.
    """
    model = add_adapter(small_model(config), rank=4)
    try:
        capability = choose_form(model)
        policy = Policy(
            model,
            form=capability.form,
            fused=FusedLayers(model, norms_everywhere=True),
            layout_as_mask=capability.layout_as_mask,
        )
        return coverage_of(policy, capability.reason, training=False)
    except IMPOSSIBLE as error:
        raise not_small(config, error) from error


def _run_once(policy: Policy, training: bool) -> None:
    batch = policy.collate(trial_pairs(policy.causal_lm.config.get_text_config().vocab_size))
    devices = [policy.device] if policy.device.type == "cuda" else []
    was_training = policy.model.training
    policy.model.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), policy.running():
            policy.token_scores(batch)
    finally:
        policy.model.train(was_training)


def _sites(policy: Policy, form_reason: str | None) -> Iterator[Site]:
    prefix, layers = text_layers(policy.model)
    reason = NO_FORM if policy.fused else NO_GPU
    for name, module in layers.named_modules():
        part = part_of(module)
        if part == "attention":
            yield Site(part, name, None if policy.form == "shared_prefix" else form_reason)
        elif part == "recurrence":
            shared = policy.form == "shared_prefix" and module in policy.recurrence.covered
            yield Site(part, name, None if shared else reason)
    fused = policy.fused or FusedLayers(policy.model)
    for site in fused.sites():
        if site.name.startswith(prefix):
            yield site if policy.fused else Site(site.part, site.name, NO_GPU)
    yield Site("output head", "", _head_reason(policy, form_reason))


def _head_reason(policy: Policy, form_reason: str | None) -> str | None:
    if policy.form == "own_logits":
        return form_reason
    head = policy.causal_lm.get_output_embeddings()
    return HEAD_OF_MODULES if isinstance(head, (BaseTunerLayer, ModulesToSaveWrapper)) else None
