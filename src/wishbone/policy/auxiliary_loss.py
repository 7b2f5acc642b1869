"""Whether the auxiliary loss of a mixture of experts can be computed: tested before the first step.

TRL applies transformers' `load_balancing_loss_func` to the router logits that a model records. Families differ in what
they record and in whether they have such a loss at all. So the model runs once on synthetic pairs, and what it records
must be one row of experts for each token. Where TRL cannot tell how many experts there are, the model's own auxiliary
loss must be that function.
"""

from __future__ import annotations

import torch
from torch import nn

from wishbone.data.batch import PreferenceBatch
from wishbone.model.eight_bit_linear import inputs_not_rounded
from wishbone.policy.capability import TOLERANCE, trial_pairs
from wishbone.policy.policy import Policy
from wishbone.policy.router_logits import RowRouting
from wishbone.preference.load_balancing import LoadBalancing, load_balancing_loss


class NoAuxiliaryLoss(ValueError):
    """The model has no auxiliary loss that could be computed; the message says why, as the end of a sentence."""


def load_balancing_of(model: nn.Module, coefficient: float) -> LoadBalancing | None:
    """Return the auxiliary loss of a model, or None where it has no routers.

    Args:
        model: a transformers causal language model, or a PEFT model around one; nothing of it is changed.
        coefficient: the weight of the loss.

    Raises:
        NoAuxiliaryLoss: the model has routers, and the loss cannot be computed from what it records of them.
    """
    policy = Policy(model, form="plain")
    config = policy.causal_lm.config.get_text_config()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), inputs_not_rounded(model):
            batch = policy.collate(trial_pairs(config.vocab_size))
            output = policy.decoder(**batch.model_inputs, use_cache=False, output_router_logits=True)
            recorded = getattr(output, "router_logits", None)
            if recorded == ():
                return None
            routers: tuple[torch.Tensor, ...] = recorded or ()
            term = LoadBalancing(coefficient, getattr(config, "num_experts_per_tok", None) or 0)
            experts = {logits.shape[1:] for logits in routers if logits.shape[0] == batch.tokens}
            if not term.top_k or len(experts) != 1 or len(next(iter(experts))) != 1:
                raise NoAuxiliaryLoss("its routers record no logits with one value for each token and expert")
            if getattr(config, "num_experts", None) != next(iter(experts))[0]:
                _compare_with_own(policy, batch, routers, term)
            return term
    finally:
        model.train(was_training)


def _compare_with_own(
    policy: Policy, batch: PreferenceBatch, recorded: tuple[torch.Tensor, ...], term: LoadBalancing
) -> None:
    """Raise unless the model itself computes an auxiliary loss, and the same from these router logits."""
    own = getattr(policy.causal_lm(**batch.model_inputs, use_cache=False, output_router_logits=True), "aux_loss", None)
    if own is None:
        raise NoAuxiliaryLoss("the model itself computes none")
    routing = RowRouting(batch, [0] * len(batch.pairs), term.top_k)
    routing.take(recorded)
    tokens = routing.chosen.new_tensor([float(batch.tokens * routing.layers)])  # the trial's batch has no padding
    got = load_balancing_loss(routing.chosen, routing.probable, tokens)
    if not abs(float(got) - float(own)) <= TOLERANCE[policy.causal_lm.dtype] * abs(float(own)):
        raise NoAuxiliaryLoss("the model's own is of another kind than the one that TRL computes")
