"""The auxiliary loss of a run: TRL's coefficient, put to the model.

TRL switches the loss on for every configuration with a coefficient, and fails in the first step where the model records
no router logits or the configuration does not say `num_experts`.
"""

from __future__ import annotations

import logging

from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.errors import RequestError
from wishbone.planning.model_shape import EXPERTS
from wishbone.policy.auxiliary_loss import NoAuxiliaryLoss, load_balancing_of
from wishbone.preference.load_balancing import LoadBalancing
from wishbone.trainer.sharding import why_not_sharded_in_step

logger = logging.getLogger(__name__)


def auxiliary_loss_of(trainer: TRLDPOTrainer) -> LoadBalancing | None:
    """Return the auxiliary loss that a trainer's settings ask for, or None where the model has none.

    Raises:
        RequestError: the user gave a coefficient, and the model has no such loss.
    """
    if not trainer.aux_loss_enabled or _sharded(trainer):
        return None
    try:
        return load_balancing_of(trainer.model, trainer.router_aux_loss_coef)
    except NoAuxiliaryLoss as missing:
        _do_without(trainer, str(missing))
        return None


def trl_computes_it(trainer: TRLDPOTrainer, term: LoadBalancing | None) -> bool:
    """Return whether a run on TRL's own path has an auxiliary loss.

    Args:
        trainer: as TRL constructed it.
        term: what `auxiliary_loss_of` found.

    Raises:
        RequestError: the user gave a coefficient, and TRL would fail to compute the loss.
    """
    if not trainer.aux_loss_enabled or term is None or _sharded(trainer):
        return trainer.aux_loss_enabled and _sharded(trainer)
    if hasattr(trainer.model.config.get_text_config(), "num_experts"):
        return True
    _do_without(trainer, "it takes TRL's own path, and TRL looks for num_experts in the model's configuration")
    return False


def _sharded(trainer: TRLDPOTrainer) -> bool:
    """Whether DeepSpeed or FSDP shards the model on TRL's own path, where no pass may be run to find out."""
    return bool(trainer.is_deepspeed_enabled or why_not_sharded_in_step(trainer))


def _do_without(trainer: TRLDPOTrainer, reason: str) -> None:
    coefficient, name = trainer.router_aux_loss_coef, trainer.model.config.model_type
    if trainer.args.router_aux_loss_coef is not None:
        raise RequestError(
            f"router_aux_loss_coef={coefficient}: for this run of a {name} model no auxiliary loss can be computed, "
            f"because {reason}; leave router_aux_loss_coef out or set it to 0"
        )
    text = trainer.model.config.get_text_config()
    experts = [count for one in EXPERTS if (count := getattr(text, one, None)) is not None]
    if experts and not any(experts):  # a dense model of a family that also has mixtures
        return
    logger.warning(
        "The model's configuration weights an auxiliary loss of its experts by %s, and this run trains without it, "
        "because %s.",
        coefficient,
        reason,
    )
