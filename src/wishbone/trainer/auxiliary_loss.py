"""The auxiliary loss of a run: TRL's coefficient, put to the model.

TRL switches the loss on for every configuration with a coefficient, and fails in the first step where the model records
no router logits or the configuration does not say `num_experts`.
"""

from __future__ import annotations

import logging

from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.errors import RequestError
from wishbone.policy.auxiliary_loss import NoAuxiliaryLoss, load_balancing_of
from wishbone.preference.load_balancing import LoadBalancing

logger = logging.getLogger(__name__)


def settle_auxiliary_loss(trainer: TRLDPOTrainer) -> LoadBalancing | None:
    """Return the auxiliary loss that a trainer's settings ask for; switch TRL's off where there is none.

    Args:
        trainer: as TRL constructed it; its `aux_loss_enabled` may change.

    Raises:
        RequestError: the user gave a coefficient, and the model has no such loss.
    """
    if not trainer.aux_loss_enabled or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return None
    try:
        term = load_balancing_of(trainer.model, trainer.router_aux_loss_coef)
    except NoAuxiliaryLoss as missing:
        _do_without(trainer, str(missing))
        return None
    if term is None:
        trainer.aux_loss_enabled = False
    return term


def leave_to_trl(trainer: TRLDPOTrainer) -> None:
    """Switch the auxiliary loss off on TRL's own path where TRL would fail to compute it.

    Raises:
        RequestError: the user gave a coefficient.
    """
    if trainer.aux_loss_enabled and not hasattr(trainer.model.config.get_text_config(), "num_experts"):
        _do_without(trainer, "the run takes TRL's own path, and TRL looks for num_experts in the model's configuration")


def _do_without(trainer: TRLDPOTrainer, reason: str) -> None:
    coefficient, name = trainer.router_aux_loss_coef, trainer.model.config.model_type
    if trainer.args.router_aux_loss_coef is not None:
        raise RequestError(
            f"router_aux_loss_coef={coefficient}: a model of the family {name} has no auxiliary loss that can be "
            f"computed here, because {reason}; leave router_aux_loss_coef out or set it to 0"
        )
    logger.warning(
        "The model's configuration weights an auxiliary loss of its experts by %s, and this run trains without it, "
        "because %s.",
        coefficient,
        reason,
    )
    trainer.aux_loss_enabled = False
