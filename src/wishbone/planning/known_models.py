"""Well-known models by name, so that a run can be planned before anything is fetched.

`models.json` has for each model the sizes in its config.json on the hub; for models that also take images, those of the
language model. A name is known under any owner and without the words that only say in which form a model comes: so
`unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit` means `meta-llama/Llama-3.1-8B-Instruct`, and so does the name of its base
model, which has the same shape.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from wishbone.config.schema import EMBEDDED_MODEL
from wishbone.planning.model_shape import ModelShape, read_shape

MODELS = Path(__file__).with_name("models.json")
FORMS = frozenset({"meta", "instruct", "it", "chat", "base", "pt", "hf", "unsloth", "bnb", "4bit"})
"""Words of a name that do not change the shape."""


@cache
def known_shapes() -> dict[str, ModelShape]:
    """Return the shapes of all known models by their name on the hub, in the order of the file."""
    found: dict[str, dict[str, Any]] = json.loads(MODELS.read_text(encoding="utf-8"))
    return {name: read_shape(config, name) for name, config in found.items()}


def known_name(name: str) -> str | None:
    """Return the name on the hub of the known model that `name` means, or None."""
    return name if name in known_shapes() else _by_words().get(_words(name))


def known_shape(name: str) -> ModelShape | None:
    """Return the shape of the known model that `name` means, or None."""
    known = known_name(name)
    return None if known is None else known_shapes()[known]


@cache
def _by_words() -> dict[str, str]:
    return {_words(name): name for name in known_shapes()}


def _words(name: str) -> str:
    """The last part of a name, in lower case and without the words of `FORMS`."""
    own = "SmolLM2-135M" if name == EMBEDDED_MODEL else name.rstrip("/").rpartition("/")[2]
    return "-".join(word for word in own.lower().split("-") if word not in FORMS)
