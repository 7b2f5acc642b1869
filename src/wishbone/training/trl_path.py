"""What a run asks for that only TRL's own path does: one line of reasons, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import PeftModel
from torch import nn

from wishbone.errors import RequestError
from wishbone.preference.losses import LOSSES

if TYPE_CHECKING:
    from wishbone.training.trainer import DPOTrainer

TRL_LOSSES = LOSSES.keys() - {"dpop", "rdpo", "simpo", "cpo", "orpo"}
"""Losses that TRL's own path has."""

BYPASSED = ("compute_loss", "_compute_loss", "compute_ref_log_probs")
"""Methods of TRL's trainer that Wishbone's step does not call: what a derived class puts there would not run."""


def trl_path_reason(trainer: DPOTrainer, own: type, *, collator_given: bool) -> str | None:
    """Return why `trainer` must run on TRL's own path, or None.

    Args:
        trainer: after TRL's construction of it.
        own: Wishbone's trainer class; what classes derived from it override is looked at.
        collator_given: whether the caller gave a data collator.
    """
    model = trainer.model
    dropout = {m.p for m in model.modules() if isinstance(m, nn.Dropout)} - {0.0}
    attention_dropout = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    prompt_learning = isinstance(model, PeftModel) and any(c.is_prompt_learning for c in model.peft_config.values())
    overridden = [name for name in BYPASSED if getattr(type(trainer), name) is not getattr(own, name)]
    reasons = {
        f"{type(trainer).__name__} overrides {', '.join(overridden)}": bool(overridden),
        "the data has images": trainer._is_vision_dataset,
        "the model takes more than text": trainer._is_vlm,
        "a data collator was given": collator_given,
        "compute_metrics reads logits": trainer.compute_metrics is not None,
        "the model's mixture of experts has an auxiliary loss over whole batches": trainer.aux_loss_enabled,
        "dropout is on (disable_dropout=False)": bool(dropout),
        "attention dropout is on in the model's configuration": bool(attention_dropout),
        "prompt-learning adapters put virtual tokens before the prompt": prompt_learning,
        "the model is sharded by DeepSpeed or FSDP": trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    return " and ".join(found) or None


def refuse_on_trl_path(trainer: DPOTrainer, *, head_adapted: bool, synchronized: bool) -> None:
    """Refuse a run that needs TRL's path for one thing and Wishbone's step for another.

    Raises:
        RequestError: naming both, and the remedy.
    """
    own_losses = sorted(set(trainer.loss_types) - TRL_LOSSES)
    needs = {
        f"loss_type {', '.join(own_losses)}": bool(own_losses),
        "an adapter on the output head": head_adapted,
        "sync_ref_model with an adapter": synchronized,
    }
    problems = [
        f"{what} needs Wishbone's step, and this run needs TRL's own path, because {trainer.form_reason}: "
        "change one of the two"
        for what, asked in needs.items()
        if asked
    ]
    if problems:
        raise RequestError(problems)
