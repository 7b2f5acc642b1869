"""How a run's base model is named so that the name means the same on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wishbone.config.schema import ModelConfig
from wishbone.model.embedded import EMBEDDED_NAME, WHEEL
from wishbone.paths import user_path

EMBEDDED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class BaseName:
    """A base model.

    Attributes:
        name: as the run names it.
        hub_id: of the same model on the hub, or None if only this machine has it.
        note: how the weights on the hub differ from those that were trained on, or None.
    """

    name: str
    hub_id: str | None
    note: str | None = None


def base_name(model: ModelConfig) -> BaseName:
    """Return how the base model of a run is named elsewhere."""
    if model.name == EMBEDDED_NAME:
        note = (
            f"the run was trained on the 4-bit copy of {EMBEDDED_ON_HUB} in {WHEEL.split('==')[0]}, whose weights "
            "differ a little from those on the hub"
        )
        return BaseName(model.name, EMBEDDED_ON_HUB, note)
    if user_path(model.name).exists() or model.name.endswith(".gguf") or model.name.startswith((".", "/", "~")):
        return BaseName(Path(model.name).name, None)
    return BaseName(model.name, model.name)
