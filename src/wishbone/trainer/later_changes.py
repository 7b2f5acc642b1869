"""What a script sets on a trainer after it was constructed: followed as in TRL, or refused.

TRL reads the settings of its loss from the trainer in every step, so that a callback may raise `trainer.beta` while it
trains. Here the step was built from the same settings. They are compared before each of its losses; what the step
cannot take on, such as another data collator, ends the run instead of changing nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.engine.step import PreferenceStep
from wishbone.errors import RequestError
from wishbone.preference.metrics import PairMetrics
from wishbone.reference.reference import NoReference
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.assembly import objective_of

ATTRIBUTES = {
    "beta": "beta",
    "f_alpha_divergence_coef": "f_alpha_divergence_coef",
    "f_divergence_type": "f_divergence_type",
    "label_smoothing": "label_smoothing",
    "ld_alpha": "ld_alpha",
    "loss_type": "loss_types",
    "loss_weights": "loss_weights",
    "use_weighting": "use_weighting",
}
"""Options of `DPOConfig` that TRL's loss reads from the trainer, by the attribute's name there."""

OF_ARGUMENTS = ("cpo_alpha", "discopop_tau", "dpop_lambda", "orpo_lambda", "rdpo_alpha", "simpo_gamma")
"""Options that are read from the arguments."""

REPLACED = {
    "compute_loss": "derive a class from DPOTrainer that overrides it; it then takes TRL's own path",
    "_compute_loss": "derive a class from DPOTrainer that overrides it; it then takes TRL's own path",
    "compute_ref_log_probs": "derive a class from DPOTrainer that overrides it; it then takes TRL's own path",
    "data_collator": "give it to DPOTrainer as data_collator; the run then takes TRL's own path",
    "ref_model": "give it to DPOTrainer as ref_model",
}
"""What the step was built with or does not call, and how to ask for another."""


DROPOUT = (
    "dropout was switched on after the trainer was constructed, and both sequences of a pair would share the random "
    "numbers of their prompt. Switch it on in the model or adapter before, with disable_dropout=False in DPOConfig, "
    "and the run takes TRL's own path"
)


class LaterChanges:
    """Compares a trainer with what its step was built from.

    Args:
        trainer: as it is when its step was assembled.
    """

    def __init__(self, trainer: TRLDPOTrainer) -> None:
        self._settings = _settings(trainer)
        self._parts = {name: _part(trainer, name) for name in REPLACED}
        self._model = trainer.model
        self._dropouts = [module for module in trainer.model.modules() if isinstance(module, nn.Dropout)]
        self._adapted = [module for module in trainer.model.modules() if isinstance(module, BaseTunerLayer)]

    def follow(self, trainer: TRLDPOTrainer, step: PreferenceStep, metrics: Iterable[PairMetrics]) -> None:
        """Let the step minimize what the trainer says now.

        Args:
            trainer: the trainer.
            step: its step, whose objective is replaced where it changed.
            metrics: receive the step's pairs; their rewards have the new beta from now on.

        Raises:
            RequestError: naming what was replaced and cannot be followed, or a value that has no meaning.
        """
        problems = [
            f"trainer.{name} was set after the trainer was constructed, and its step would not use it: {remedy}"
            for name, remedy in REPLACED.items()
            if _part(trainer, name) is not self._parts[name]
        ]
        if trainer.model is not self._model and not _trains_the_same(trainer.model, step.policy.model):
            problems.append(
                "trainer.model was replaced after the trainer was constructed, and its step would train the former "
                "one: construct the trainer with the model that is to be trained"
            )
        if any(dropout.p for dropout in self._dropouts):
            problems.append(DROPOUT)
        if any(layer.merged for layer in self._adapted):
            problems.append(
                "the adapter was merged into its base after the trainer was constructed, so it cannot be trained, nor "
                "switched off for the reference: call unmerge_adapter() first"
            )
        if trainer.is_in_train and any(layer.disable_adapters for layer in self._adapted):
            problems.append("the adapter was switched off after the trainer was constructed: nothing would be trained")
        if problems:
            raise RequestError(problems)
        self._model = trainer.model
        settings = _settings(trainer)
        if settings == self._settings:
            return
        args: DPOConfig = trainer.args
        objective = objective_of(args.changed(settings), step.objective.load_balancing)
        if objective.ld_alpha != step.objective.ld_alpha:
            problems.append("trainer.ld_alpha was changed, and reference values were computed with the former one")
        if isinstance(step.reference, NoReference) and not objective.reference_free:
            problems.append("trainer.loss_types needs a reference now, and the run began without one")
        if settings["beta"] != self._settings["beta"] and args.guard != "off":
            problems.append(
                "trainer.beta was changed, and the guard compares rewards of one beta (guard='off' ends it)"
            )
        if problems:
            raise RequestError([f"{problem}: set it in DPOConfig" for problem in problems])
        self._settings, step.objective = settings, objective
        for one in metrics:
            one.beta = settings["beta"]


def _settings(trainer: TRLDPOTrainer) -> dict[str, Any]:
    """Return the settings of the loss by the names of their options."""
    named = {option: getattr(trainer, attribute) for option, attribute in ATTRIBUTES.items()}
    named |= {option: getattr(trainer.args, option) for option in OF_ARGUMENTS}
    return {option: list(value) if isinstance(value, list) else value for option, value in named.items()}


def _part(trainer: TRLDPOTrainer, name: str) -> Any:
    """Return what the trainer itself holds under a name; None for a method that is its class's."""
    return vars(trainer).get(name)


def _trains_the_same(model: nn.Module, stepped: nn.Module) -> bool:
    """Return whether everything that is trained of `model` is a parameter of the model that the step runs."""
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    return trained <= {id(parameter) for parameter in stepped.parameters()}
