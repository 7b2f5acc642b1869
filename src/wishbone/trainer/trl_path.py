"""Which runs take TRL's own path instead of Wishbone's step, and why, in one line."""

from __future__ import annotations

from datasets import IterableDataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.errors import RequestError, some_of
from wishbone.model.frozen_copy import StartValues
from wishbone.policy.capability import varies_in_training
from wishbone.policy.image_stem import TOWER
from wishbone.policy.policy import Policy
from wishbone.preference.losses import LOSSES
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.image_dataset import completions_with_images
from wishbone.trainer.request import Request
from wishbone.trainer.sharding import why_not_sharded_in_step

TRL_LOSSES = LOSSES.keys() - {"dpop", "rdpo", "simpo", "cpo", "orpo"}
"""Losses that TRL's own path has."""

BYPASSED = ("compute_loss", "_compute_loss", "compute_ref_log_probs")
"""Methods of TRL's trainer that Wishbone's step does not call: those of a derived class would not run."""

STEPS_IN_BACKWARD = frozenset(
    {"lomo", "adalomo", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"}
    | {"apollo_adamw_layerwise"}
)
"""Optimizers that update each parameter as soon as its gradient exists, so they need one backward pass a step."""


def trl_path_reason(trainer: TRLDPOTrainer, own: type[TRLDPOTrainer], *, collator_given: bool) -> str | None:
    """Return why a trainer must run on TRL's own path, or None.

    Args:
        trainer: as TRL constructed it; only attributes that TRL and transformers set are read.
        own: Wishbone's trainer class: methods that a derived class overrides are a reason.
        collator_given: whether the caller gave a data collator.

    Raises:
        RequestError: a completion holds an image, and the caller's collator does not take care of it.
    """
    model, args = trainer.model, trainer.args
    attention_dropout = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    prompt_learning = isinstance(model, PeftModel) and any(c.is_prompt_learning for c in model.peft_config.values())
    overridden = [name for name in BYPASSED if getattr(type(trainer), name) is not getattr(own, name)]
    reasons = {
        f"{type(trainer).__name__} overrides {', '.join(overridden)}": bool(overridden),
        "a data collator was given": collator_given,
        "compute_metrics reads logits": trainer.compute_metrics is not None,
        "dropout is on (disable_dropout=False)": drops_out(model),
        "attention dropout is on in the model's configuration": bool(attention_dropout),
        "prompt-learning adapters put virtual tokens before the prompt": prompt_learning,
        "the adapter needs its own forward pass": _adapter_has_own_forward(model) and not prompt_learning,
        "DeepSpeed's engine runs the model's own forward pass (FSDP 2 runs in the step)": trainer.is_deepspeed_enabled,
        "parallelism_config splits the model or its sequences": trainer.accelerator.parallelism_config is not None,
        "torch_compile compiles the model's own forward pass": args.torch_compile,
        "NEFTune's noise depends on the padded length of a batch": args.neftune_noise_alpha is not None,
        f"optim={args.optim.value} steps within the backward pass": args.optim.value in STEPS_IN_BACKWARD,
        "dispatch_batches cuts batches of tensors": trainer.accelerator.dataloader_config.dispatch_batches is True
        and not isinstance(trainer.train_dataset, IterableDataset),
    }
    found = [reason for reason, holds in reasons.items() if holds] + _image_reasons(trainer, collator_given)
    if sharded := why_not_sharded_in_step(trainer):
        found.append(sharded)
    return " and ".join(found) or None


def drops_out(model: nn.Module) -> bool:
    """Return whether a model has a dropout module that is on; that of a new adapter changes no result yet."""
    return any(module.p for module in model.modules() if isinstance(module, nn.Dropout))


def noise_reason(model: nn.Module) -> str | None:
    """Return the reason if a model's results vary in training (dropout), which needs TRL's own path, else None."""
    if varies_in_training(model):
        return "the model has dropout or other noise that disable_dropout does not turn off"
    return None


def _image_reasons(trainer: TRLDPOTrainer, collator_given: bool) -> list[str]:
    """Return why images cannot be part of the shared stems of rows; empty where they can, or without images."""
    if not trainer._is_vision_dataset:
        return []
    reasons: list[str] = []
    for rows in (trainer.train_dataset, trainer.eval_dataset):
        number = None if rows is None or collator_given else completions_with_images(rows)
        if number is not None:
            raise RequestError(
                f"a completion holds an image (row {number:,}), and neither Wishbone nor TRL trains on it: TRL's "
                "collator shows all images of a row in its prompt; leave the row out, or give a data collator for it"
            )
    if not Policy(trainer.model, form="own_logits").image_stem.is_found:
        reasons.append(f"{type(trainer.model).__name__} has no method {TOWER}, which would run its images alone")
    return reasons


def _adapter_has_own_forward(model: nn.Module) -> bool:
    """Return whether PEFT's forward pass adds to the layers: the step does not call it, only the model's parts."""
    if not isinstance(model, PeftModel):
        return False
    tuner = model.base_model
    invoked = any(getattr(config, "alora_invocation_tokens", None) for config in model.peft_config.values())
    return invoked or not isinstance(tuner, BaseTuner) or type(tuner).forward is not BaseTuner.forward


def refuse_on_trl_path(
    request: Request, reason: str, args: DPOConfig, *, start_values: StartValues | None = None
) -> None:
    """Refuse a run that needs TRL's path for one thing and Wishbone's step for another.

    Args:
        request: what the run asks for.
        reason: why it needs TRL's path.
        args: the arguments of the constructed trainer.
        start_values: trained parameters of an adapter's base, which TRL's reference would follow.

    Raises:
        RequestError: naming both, and the remedy.
    """
    own_losses = sorted(set(args.loss_type) - TRL_LOSSES)
    trained = [] if start_values is None else list(start_values.values)
    needs = {
        f"loss_type {', '.join(own_losses)}": bool(own_losses),
        f"training {some_of(trained)} beside the adapter": start_values is not None,
        "an adapter on the output head": request.head_adapted,
        "sync_ref_model with an adapter": request.synchronized,
    }
    problems = [
        f"{what} needs Wishbone's step, and this run needs TRL's own path, because {reason}: change one of the two"
        for what, asked in needs.items()
        if asked
    ]
    if problems:
        raise RequestError(problems)
