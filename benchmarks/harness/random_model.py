"""A model with random weights in the shape of a real one, made on the device or written to a directory.

Libraries that quantize while they load read a directory. It holds the weights that are made on the device, as long as
both are made on the same kind of device. The tokenizer has one word per token, so a text of n words has n tokens.

    python -m benchmarks.harness.random_model SIZE DIRECTORY
"""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.harness.workloads import SIZES, Size

POSITIONS = 262_144
SHARD_BYTES = 2 * 2**30
WRITERS = 4
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>")
CHAT = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"


def config_of(size: Size, dtype: torch.dtype) -> LlamaConfig:
    """Return the configuration of a model in that shape."""
    return LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        vocab_size=size.vocabulary,
        tie_word_embeddings=size.tied,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        dtype=dtype,
    )


def random_model(size: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a model on `device`, with the same weights every time on one kind of device."""
    return _drawn(SIZES[size], dtype, device)


def model_of_one_layer(size: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a model in that shape whose layers are views of one layer's memory: room for what FSDP then divides.

    Each layer has parameters of its own, so a process's parts of them lie apart once they are divided.
    """
    shape = SIZES[size]
    model = _drawn(replace(shape, layers=1), dtype, device)
    model.config.num_hidden_layers = shape.layers
    first = model.model.layers[0]
    for index in range(1, shape.layers):
        with torch.device("meta"):
            layer = type(first)(model.config, index)
        layer.load_state_dict(first.state_dict(), assign=True)
        model.model.layers.append(layer)
    return model


def _drawn(shape: Size, dtype: torch.dtype, device: torch.device) -> Any:
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config_of(shape, dtype))
    finally:
        torch.set_default_dtype(before)
    return model


def random_tokenizer(size: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a model in that shape."""
    return word_tokenizer(SIZES[size].vocabulary)


def word_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of so many words: the word `t17` is token 17."""
    vocabulary = {f"t{index}": index for index in range(len(SPECIAL), words)}
    vocabulary |= {word: index for index, word in enumerate(SPECIAL)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=POSITIONS,
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def write_random_model(size: str, dtype: torch.dtype, device: torch.device, directory: Path) -> None:
    """Write configuration, weights (several files at once) and tokenizer; the directory appears when all are there."""
    place, directory = directory, directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    model = random_model(size, dtype, device)
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and SIZES[size].tied:
            continue
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    names = [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]

    def write(name: str, shard: dict[str, torch.Tensor]) -> None:
        save_file({key: tensor.cpu() for key, tensor in shard.items()}, directory / name, metadata={"format": "pt"})

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, names, shards))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for shard in shards for tensor in shard.values())},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    model.config.save_pretrained(directory)
    random_tokenizer(size).save_pretrained(directory)
    directory.rename(place)


def main() -> None:
    size, directory = sys.argv[1:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    write_random_model(size, torch.bfloat16 if device.type == "cuda" else torch.float32, device, Path(directory))


if __name__ == "__main__":
    main()
