"""Checks before the weights of a model are read: it is whole, safe to open, and a causal language model.

The same checks serve a local directory and the list of files of a hub repository.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from wishbone.data.json_text import parse_json

TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "tekken.json",
    }
)
SIZES = (
    ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    ("hidden_size", "n_embd", "d_model"),
    ("intermediate_size", "n_inner", "ffn_dim"),
    ("vocab_size",),
)
"""Names of layers, elements of a token between and within them, and rows of the embedding."""
MOST_LAYERS = 10_000
MOST_WEIGHTS_A_BYTE = 8
INDEX = "model.safetensors.index.json"


def missing_files(files: Collection[str], *, weights: bool = True) -> list[str]:
    """Return what a model of these files lacks, one phrase for each; an empty list if it can be loaded.

    Args:
        files: names at the top of the directory or repository.
        weights: whether weights are needed, or only the tokenizer.
    """
    lacking = []
    if weights and "config.json" not in files:
        lacking.append("there is no config.json")
    if TOKENIZER_FILES.isdisjoint(files):
        lacking.append("there are no tokenizer files (tokenizer.json or tokenizer.model)")
    if weights and not any(name.endswith(".safetensors") for name in files):
        pickled = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth")))
        ggufs = sorted(name for name in files if name.endswith(".gguf"))
        if pickled:
            lacking.append(
                f"the weights are pickle files ({pickled[0]}), which can run code when they are opened; save the model "
                "again as safetensors"
            )
        elif ggufs:
            lacking.append(f"the weights are GGUF files; give one of them, such as {ggufs[0]}, as the model")
        else:
            lacking.append("there are no weights (model.safetensors)")
    return lacking


def damaged_weights(directory: Path) -> list[str]:
    """Return what is wrong with the safetensors files of a local model, judged by their headers and sizes."""
    index = directory / INDEX
    if index.is_file():
        try:
            names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"{INDEX} cannot be read"]
    else:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
    wrong = []
    for name in names:
        path = directory / name
        if not path.is_file():
            wrong.append(f"{name}, which {INDEX} names, is missing")
            continue
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            wrong.append(f"{name} is damaged or cut short ({error}); copy or download it again")
    return wrong


def oversized(config: dict[str, Any], directory: Path | None) -> str | None:
    """Return why the model that a config.json describes is not built, or None: layers that take forever, sizes that the
    weights are too few for.

    Args:
        config: content of config.json.
        directory: of the weights; None if they are not on this machine yet.
    """
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    layers, hidden, inner, vocabulary = (
        max((size for name in names if isinstance(size := config.get(name), int)), default=0) for names in SIZES
    )
    if layers > MOST_LAYERS:
        return f"its config.json claims {layers} layers; copy it again"
    if directory is None:
        return None
    stored = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    described = max(layers * hidden * inner, vocabulary * hidden)
    if described > MOST_WEIGHTS_A_BYTE * stored:
        return f"its config.json describes {described} weights, and its files have {stored} bytes; copy it again"
    return None


def reads_images(config: dict[str, Any]) -> bool:
    """Return whether a model with this `config.json` reads images beside text."""
    kind = config.get("model_type")
    return kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def has_text_class(config: dict[str, Any]) -> bool:
    """Return whether transformers has a class for the text of such a model alone."""
    kind = config.get("model_type")
    return kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] in MODEL_FOR_CAUSAL_LM_MAPPING


def not_causal(config: dict[str, Any], *, trust_remote_code: bool, images: bool = False) -> str | None:
    """Return why a model with this `config.json` is not one to load, or None for a causal language model.

    A model that brings its own code is taken at its word when that code is trusted. One that reads images is taken for
    text, too; with `images` it is asked for.
    """
    kind = config.get("model_type")
    if "auto_map" in config and trust_remote_code:
        return None
    if "auto_map" in config and kind not in CONFIG_MAPPING:
        return "it needs Python code that comes with it; read that code, and set trust_remote_code only if you trust it"
    if kind is None:
        return "its config.json names no model_type"
    if kind not in CONFIG_MAPPING:
        return (
            f"its architecture {kind!r} is not known to transformers {transformers.__version__}; a newer transformers "
            "may know it"
        )
    try:
        parsed = CONFIG_MAPPING[kind].from_dict(config)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        return f"its config.json is not valid for {kind!r} ({' '.join(str(error).split())})"
    wanted = "; preference optimization here needs a causal (decoder-only) language model"
    if getattr(parsed, "is_encoder_decoder", False):
        return f"{kind!r} is an encoder-decoder model{wanted}"
    with_images = images or type(parsed) not in MODEL_FOR_CAUSAL_LM_MAPPING
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if with_images else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(parsed) not in mapping and images:
        return f"{kind!r} reads no images; name a model that does, or train on text (FastLanguageModel)"
    if type(parsed) not in mapping:
        return f"{kind!r} is not a language model that generates text{wanted}"
    if hasattr(parsed, "add_cross_attention") and getattr(parsed, "is_decoder", True) is False:
        return f"{kind!r} is an encoder, whose tokens see the ones after them{wanted}"
    made_as = config.get("architectures") or []
    generates = mapping[type(parsed)]
    classes = {c.__name__ for c in (generates if isinstance(generates, tuple) else (generates,))}
    if made_as and not any(name in classes or name.endswith(("ForCausalLM", "LMHeadModel")) for name in made_as):
        return f"it was saved as {made_as[0]}, which has no language-model head{wanted}"
    return None
