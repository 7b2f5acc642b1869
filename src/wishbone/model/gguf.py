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

import psutil
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from wishbone.cache import cache_root, file_digest, kept_directory
from wishbone.errors import RequestError, one_line
from wishbone.model.gguf_header import DamagedError, GgufHeader, read_header
from wishbone.model.gguf_tokenizer import UNFIT, gguf_tokenizer

CONVERSION = 1  # goes up when the same file converts to something else; part of the name in the cache

MOST_DESCRIBED = 2
"""A model may have this many times the weights of its file, in which tied ones stand once."""
BYTES_A_WEIGHT = 6
"""Memory that conversion takes: each weight as float32, and then in the dtype that is kept."""

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
    header = _header(path)
    _refuse_too_large(path, header)
    tokenizer = gguf_tokenizer(path, header.values)
    model = _dense_model(path, header)
    dtype = smallest_exact_dtype(list(model.parameters()))
    needed = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    if (free := shutil.disk_usage(directory).free) < needed:
        raise RequestError(
            f"{path} converts to {needed / 2**30:.1f} GiB and {cache_root()} has {free / 2**30:.1f} GiB free; "
            "make room or set WISHBONE_CACHE to a roomier place"
        )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(directory)
    _unmarked(model, dtype, path).save_pretrained(directory)


def smallest_exact_dtype(weights: list[Tensor]) -> torch.dtype:
    """Return bfloat16 or float16 if it holds every one of these float32 numbers unchanged, else float32."""
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(weight.to(dtype).float(), weight) for weight in weights):
            return dtype
    return torch.float32


def _header(path: Path) -> GgufHeader:
    try:
        header = read_header(path)
    except (DamagedError, OSError) as error:
        raise RequestError(f"{path} is not a whole GGUF file ({one_line(error)}); get it again") from error
    parts = header.values.get("split.count", 1)
    if not isinstance(parts, int) or parts > 1:
        raise RequestError(f"{path} is one of {parts!r:.40} parts; merge them with `llama-gguf-split --merge` first")
    return header


def _refuse_too_large(path: Path, header: GgufHeader) -> None:
    """Refuse a file whose weights do not fit the host's memory while they are converted."""
    needed, free = header.elements * BYTES_A_WEIGHT, psutil.virtual_memory().available
    if needed > free:
        raise RequestError(
            f"{path} takes {needed / 2**30:.1f} GiB of memory to convert and {free / 2**30:.1f} GiB are free; name the "
            "original model's directory or hub id instead, or convert it on a larger machine"
        )


def _dense_model(path: Path, header: GgufHeader) -> PreTrainedModel:
    packing = {}
    if hasattr(transformers, "GgufConfig"):  # a later transformers may leave the blocks packed
        packing["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        described = _described_weights(path)
        if described > MOST_DESCRIBED * header.elements:
            raise RequestError(
                f"{path} has {header.elements} weights and describes a model of {described}; get it again"
            )
        model, report = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32, output_loading_info=True, **packing
        )
    except RequestError:
        raise
    except UNFIT as error:
        raise RequestError(
            f"{path} cannot be converted ({one_line(error)}); name the original model's directory or hub id instead"
        ) from error
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise RequestError(f"{path} has no fitting weights for {', '.join(lacking[:3])} ({len(lacking)} in all)")
    return model


def _described_weights(path: Path) -> int:
    """Weights of the model that the metadata describes; none of them is in memory."""
    config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    with torch.device("meta"):
        return sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())


def _unmarked(loaded: PreTrainedModel, dtype: torch.dtype, path: Path) -> PreTrainedModel:
    """Return the same model in `dtype` without its mark of being quantized, which would forbid to save it.

    Raises:
        RequestError: weights of the file at `path` have other shapes than its metadata describe.
    """
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    described = {name: weight.shape for name, weight in model.state_dict().items()}
    unfit = sorted(name for name, weight in loaded.state_dict().items() if weight.shape != described.get(name))
    if unfit:  # some versions of transformers give weights the shape that the file has
        raise RequestError(f"{path} has no fitting weights for {', '.join(unfit[:3])} ({len(unfit)} in all)")
    model.load_state_dict({name: weight.to(dtype) for name, weight in loaded.state_dict().items()}, assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model
