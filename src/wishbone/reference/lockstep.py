"""Whether policy and reference of a run can be computed in one pass: tested before the first step.

A model's own code runs on policy and reference (`fused/lockstep.py`). Code that reads the values of tensors, or passes
them to other libraries, cannot. So two synthetic pairs are scored in one pass and in two; where the log-probabilities
differ by more than rounding, or the pass fails, two passes are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wishbone.data.batch import TokenizedPair
from wishbone.model.eight_bit_linear import EightBitLinear
from wishbone.policy.capability import TOLERANCE, trial_pairs
from wishbone.policy.lockstep import LockstepReference
from wishbone.policy.policy import Policy
from wishbone.preference.sequence_scores import sequence_scores
from wishbone.reference.reference import AdapterDisabled

FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model's code raises that cannot run on policy and reference."""

EIGHT_BITS = 0.1
"""Relative difference that rounding inputs to 8 bits explains."""


def why_apart(policy: Policy, reference: AdapterDisabled, images: Sequence[TokenizedPair] = ()) -> str | None:
    """Return why policy and reference run one after the other, in one line; None where one pass computes both.

    Args:
        policy: as it will run.
        reference: the policy's own weights.
        images: pairs of the run that have images; empty if it has none.
    """
    if policy.form != "shared_prefix":
        return "the model is not run with a shared prefix"
    if policy.fused is None:
        return "its layers do not run fused on this device"
    if not reference.switches_by_layer:
        return "switching to the reference changes more than its adapters"
    if any(module._backward_hooks or module._backward_pre_hooks for module in policy.model.modules()):
        return "its modules have backward hooks, which take a tensor as it is"
    was_training = policy.model.training
    policy.model.eval()
    try:
        made_up = trial_pairs(policy.causal_lm.config.get_text_config().vocab_size)
        errors = [_error(policy, reference, pairs, graph=pairs is made_up) for pairs in (made_up, images) if pairs]
        error = next((one for one in errors if one is not None), None)
    except FAILURES as failure:
        return f"the model's code does not run on both at once ({type(failure).__name__}: {_first_line(failure)})"
    finally:
        policy.model.train(was_training)
    return None if error is None else f"one pass gives other log-probabilities (relative difference {error:.1e})"


def rounds_inputs(policy: Policy) -> bool:
    """Return whether frozen layers round their inputs to 8 bits, each pass for itself."""
    return any(isinstance(module, EightBitLinear) and module.rounds_input for module in policy.causal_lm.modules())


@torch.no_grad()
def _error(policy: Policy, reference: AdapterDisabled, pairs: Sequence[TokenizedPair], *, graph: bool) -> float | None:
    """Return by how much one pass and two differ where that is more than rounding explains.

    With a graph, what would lose it is noticed; pairs have to be short for that.
    """
    batch = policy.collate(pairs)
    expected = [reference.logps(batch)]
    with policy.running():
        expected.append(sequence_scores(policy.token_scores(batch, statistics=False), batch).logps)
        with torch.set_grad_enabled(graph):
            found = policy.scores_in_lockstep(batch, LockstepReference(tuple(reference.on())))
        got = [sequence_scores(scores, batch).logps.detach() for scores in reversed(found)]
    difference = max(
        float((own.double() - one.double()).norm() / own.double().norm())
        for own, one in zip(expected, got, strict=True)
    )
    tolerance = max(TOLERANCE[policy.causal_lm.dtype], EIGHT_BITS if rounds_inputs(policy) else 0.0)
    return None if difference <= tolerance else difference


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
