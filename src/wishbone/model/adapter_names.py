"""Names and numbers in an adapter's configuration that fit nothing in the model.

PEFT adapts what it finds and passes over the rest: a rank for `q_prjo`, a list of layers written for another family, a
layer behind the last one. The run then trains less than was asked for, or with another rank.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

LISTS = ("target_modules", "target_parameters")
PATTERNS = ("rank_pattern", "alpha_pattern")


def absent_names(model: PreTrainedModel, config: PeftConfig) -> list[str]:
    """Return a sentence for each entry of a configuration that PEFT would pass over.

    Args:
        model: without adapter.
        config: of the adapter to put on it.
    """
    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    names = {"target_modules": modules, "target_parameters": parameters}
    found = []
    for option in LISTS:
        asked = getattr(config, option, None)
        for end in sorted(asked) if isinstance(asked, Collection) and not isinstance(asked, str) else []:
            if not any(f".{name}".endswith(f".{end}") for name in names[option]):
                kind = "parameter" if option == "target_parameters" else "module"
                found.append(f"{option} names {end!r}, and the model has no such {kind}; correct the name")
    for option in PATTERNS:
        for key in getattr(config, option, None) or {}:
            pattern = re.compile(rf"(.*\.)?({key})$")
            if not any(map(pattern.match, modules + parameters)):
                found.append(f"{option} names {key!r}, and the model has no such module; correct the name")
    return found + _absent_layers(model, getattr(config, "layers_to_transform", None))


def _absent_layers(model: PreTrainedModel, asked: int | Iterable[int] | None) -> list[str]:
    """A sentence if layers are to be adapted that lie behind the last one."""
    lists = [len(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    numbers = [asked] if isinstance(asked, int) else list(asked or ())
    if not lists or not (absent := [number for number in numbers if not 0 <= number < max(lists)]):
        return []
    named = ", ".join(map(str, absent))
    return [f"layers_to_transform names {named}, and the model's layers are 0 to {max(lists) - 1}; correct the numbers"]
