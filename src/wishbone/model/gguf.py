"""GGUF files, converted once into what every other model is here: a directory of safetensors and a tokenizer.

transformers reads the file and undoes llama.cpp's permutation of the query and key rows. Quantized blocks become the
numbers they stand for: Q4_1 is w = d q + m with float16 d, m and a 4-bit q, which takes more significant bits than
float16 or bfloat16 have, so the weights are kept in the smallest float dtype that holds every one of them exactly.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGUFReader
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from wishbone.cache import cache_root, file_digest, kept_directory
from wishbone.errors import RequestError
from wishbone.model.gguf_tokenizer import gguf_tokenizer

CONVERSION = 1  # goes up when the same file converts to something else; part of the name in the cache

logger = logging.getLogger(__name__)


def cache_name(stem: str, digest: str) -> str:
    """Return the name in the cache of the conversion of a GGUF file with this SHA-256."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', stem).strip('.-')[:80]}-{digest[:16]}-v{CONVERSION}"


def gguf_directory(path: Path) -> Path:
    """Return the directory that holds the model of this GGUF file, converted on first use; keyed by its content.

    Raises:
        RequestError: not a GGUF file, damaged, one part of several, or of a kind that cannot be converted.
    """

    def build(directory: Path) -> None:
        logger.info("converting %s, once", path)
        convert_gguf(path, directory)

    return kept_directory(cache_name(path.stem, file_digest(path)), build)


def convert_gguf(path: Path, directory: Path) -> None:
    """Write model and tokenizer of the GGUF file at `path` into the existing, empty `directory`.

    Raises:
        RequestError: as `gguf_directory`.
    """
    tokenizer = gguf_tokenizer(path, read_metadata(path))
    model = _dense_model(path)
    dtype = smallest_exact_dtype(list(model.parameters()))
    needed = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    if (free := shutil.disk_usage(directory).free) < needed:
        raise RequestError(
            f"{path} converts to {needed / 2**30:.1f} GiB and {cache_root()} has {free / 2**30:.1f} GiB free; "
            "make room or set WISHBONE_CACHE to a roomier place"
        )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(directory)
    _unmarked(model, dtype).save_pretrained(directory)


def smallest_exact_dtype(weights: list[Tensor]) -> torch.dtype:
    """Return bfloat16 or float16 if it holds every one of these float32 numbers unchanged, else float32."""
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(weight.to(dtype).float(), weight) for weight in weights):
            return dtype
    return torch.float32


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the key-value pairs of a GGUF file, after a look that the file is whole.

    Raises:
        RequestError: not a GGUF file, cut short, or one part of several.
    """
    try:
        metadata = {key: field.contents() for key, field in GGUFReader(path).fields.items()}
    except (ValueError, IndexError, OSError) as error:
        raise RequestError(f"{path} is not a whole GGUF file ({one_line(error)}); get it again") from error
    if (parts := metadata.get("split.count", 1)) > 1:
        raise RequestError(f"{path} is one of {parts} parts; merge them with `llama-gguf-split --merge` first")
    return metadata


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _dense_model(path: Path) -> PreTrainedModel:
    packing = {}
    if hasattr(transformers, "GgufConfig"):  # a later transformers may leave the blocks packed
        packing["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32, output_loading_info=True, **packing
        )
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise RequestError(
            f"{path} cannot be converted ({one_line(error)}); name the original model's directory or hub id instead"
        ) from error
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise RequestError(f"{path} has no fitting weights for {', '.join(lacking[:3])} ({len(lacking)} in all)")
    return model


def _unmarked(loaded: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return the same model in `dtype` without its mark of being quantized, which would forbid to save it."""
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict({name: weight.to(dtype) for name, weight in loaded.state_dict().items()}, assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model
