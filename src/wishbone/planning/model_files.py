"""The shape of a model and the directory of its tokenizer, from files on this machine or the model's name.

Nothing is downloaded and no weights are opened. A model is looked up as a directory, as the embedded model, in the
hub's cache, and among the well-known models, in this order.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wishbone.config.document import show
from wishbone.config.explain import nearest
from wishbone.config.schema import EMBEDDED_MODEL
from wishbone.data.json_text import NotJsonError, parse_json
from wishbone.errors import RequestError
from wishbone.planning.known_models import known_shape, known_shapes
from wishbone.planning.model_shape import ModelShape, read_shape


def find_shape(name: str, revision: str | None = None) -> tuple[ModelShape, Path | None]:
    """Return the shape of a model and the directory of its files, None where only its name is known.

    Raises:
        RequestError: the model is not known, or its config.json lacks sizes.
    """
    directory = model_directory(name, revision)
    if directory is not None:
        return read_shape(_config(directory, name), name), directory
    if name.lower().endswith(".gguf"):
        raise RequestError(f"model.name {show(name)} is a GGUF file, which has no config.json; plan with its model id")
    known = known_shape(name)
    if known is None:
        close = nearest(name, known_shapes())
        hint = f"did you mean {close}? Otherwise give" if close else "give"
        raise RequestError(f"model.name {show(name)} is not on this machine and not known by name; {hint} a directory")
    return known, None


def model_directory(name: str, revision: str | None = None) -> Path | None:
    """Return the directory on this machine that holds the model's config.json, or None."""
    if os.path.isdir(name):  # False also for a name that no directory may have
        return Path(name)
    if name == EMBEDDED_MODEL:
        from wishbone.cache import MANIFEST, cache_root

        made = sorted(cache_root().glob(f"{EMBEDDED_MODEL}-*/{MANIFEST}"))
        return made[-1].parent if made else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _config(directory: Path, name: str) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise RequestError(f"model.name {show(name)}: {path} cannot be read ({error.strerror})") from error
    except NotJsonError as error:
        raise RequestError(f"model.name {show(name)}: {path} {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"model.name {show(name)}: {path} holds no object")
    return found
