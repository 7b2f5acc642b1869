"""Writes a model directory as one GGUF file, tensor by tensor, so that one tensor at a time takes memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from wishbone.errors import RequestError
from wishbone.model.gguf_architecture import Array, TensorNames, family_of, rope_factors, write_hyperparameters
from wishbone.model.gguf_vocabulary import vocabulary

KINDS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
"""Kinds of files that are written here, with the type of their matrices. Vectors are always float32."""


def obstacle(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return why such a model cannot be written here, or None."""
    try:
        family_of(config)
        vocabulary(tokenizer, config.vocab_size)
    except RequestError as error:
        return "; ".join(error.problems)
    return None


def write_gguf(model: Path, tokenizer: PreTrainedTokenizerBase, file: Path, kind: str, name: str) -> None:
    """Write the model directory `model` as the GGUF file `file`.

    Args:
        model: config.json and safetensors.
        tokenizer: of the model.
        file: a new file.
        kind: one of `KINDS`.
        name: of the model, for people.

    Raises:
        RequestError: GGUF, or this module, has no such model.
        OSError: the disk is full or fails.
    """
    config = AutoConfig.from_pretrained(model)
    matrices, file_type = KINDS[kind]
    names = TensorNames(config)
    words = vocabulary(tokenizer, config.vocab_size)
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[family_of(config).architecture])
    try:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_hyperparameters(writer, config)
        words.write(writer, tokenizer)
        tensors = {**_tensors(model, names), **{n: _constant(v) for n, v in rope_factors(config).items()}}
        types = {}
        for tensor_name, (shape, _) in tensors.items():
            types[tensor_name] = stored = _stored(shape, matrices)
            size = gguf.quant_shape_to_byte_shape(shape, stored)
            writer.add_tensor_info(tensor_name, size, np.dtype(np.uint8), int(np.prod(size)), stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor_name, (_, read) in tensors.items():
            exact = np.ascontiguousarray(read(), np.float32)
            writer.write_tensor_data(np.ascontiguousarray(gguf.quantize(exact, types[tensor_name])).view(np.uint8))
    finally:
        writer.close()


def _stored(shape: tuple[int, ...], matrices: GGMLQuantizationType) -> GGMLQuantizationType:
    """The type of a tensor; rows that are not whole blocks stay in float16."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    return matrices if shape[-1] % gguf.GGML_QUANT_SIZES[matrices][0] == 0 else GGMLQuantizationType.F16


def _tensors(model: Path, names: TensorNames) -> dict[str, tuple[tuple[int, ...], Callable[[], Array]]]:
    """Shapes of the tensors of a directory by their names in GGUF, and functions that read them."""
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {key: (path, tuple(file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
    ours = names.named(list(found))
    return {theirs: (found[name][1], _reading(found[name][0], name, names)) for name, theirs in ours.items()}


def _reading(path: Path, name: str, names: TensorNames) -> Callable[[], Array]:
    def read() -> Array:
        with safe_open(path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return names.form(name, tensor.float().numpy())

    return read


def _constant(values: Array) -> tuple[tuple[int, ...], Callable[[], Array]]:
    return values.shape, lambda: values
