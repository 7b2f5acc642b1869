"""Settings that are allowed but probably not intended."""

from __future__ import annotations

from wishbone.config.emit import number_text
from wishbone.config.schema import PreferenceConfig, RunConfig

ADAPTER_LEARNING_RATE = 5e-5

READ_BY = {
    "discopop_tau": {"discopop"},
    "simpo_gamma": {"simpo"},
    "dpop_lambda": {"dpop"},
    "rdpo_alpha": {"rdpo"},
    "cpo_alpha": {"cpo"},
    "orpo_lambda": {"orpo"},
    "label_smoothing": {"exo_pair", "robust", "aot", "aot_unpaired"},
}
"""Hyperparameters that some losses alone read, by their names, which are those of the arguments too."""


def cautions(config: RunConfig) -> list[str]:
    """One sentence for each setting that has no effect or is known to fail; empty if there is none."""
    found = []
    rate = config.training.learning_rate
    if config.adapter.method == "lora" and rate >= ADAPTER_LEARNING_RATE:
        found.append(
            f"training.learning_rate {number_text(rate)} is a rate for supervised fine-tuning; preference losses "
            "usually collapse there. With adapters 5e-7 to 2e-5 is common; stay below "
            f"{number_text(ADAPTER_LEARNING_RATE)}"
        )
    if config.training.scheduler == "constant" and config.training.warmup_ratio:
        found.append(
            f"training.warmup_ratio {config.training.warmup_ratio:g} has no effect: the constant schedule has no "
            "warm-up; set training.scheduler: constant_with_warmup, or training.warmup_ratio: 0"
        )
    return found + _without_effect(config.preference)


def _without_effect(preference: PreferenceConfig) -> list[str]:
    found = [
        f"preference.{name} {getattr(preference, name):g} has no effect: only {', '.join(sorted(losses))} reads it, "
        f"and the loss is {', '.join(preference.loss)}"
        for name, losses in READ_BY.items()
        if losses.isdisjoint(preference.loss) and getattr(preference, name) != _default(name)
    ]
    if preference.f_alpha != _default("f_alpha") and preference.f_divergence != "alpha_divergence":
        found.append(
            f"preference.f_alpha {preference.f_alpha:g} has no effect: only alpha_divergence reads it, and "
            f"f_divergence is {preference.f_divergence}"
        )
    return found


def _default(name: str) -> object:
    return PreferenceConfig.model_fields[name].default
