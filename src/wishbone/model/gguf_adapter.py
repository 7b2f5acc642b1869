"""A LoRA adapter as a GGUF file, for llama.cpp's `--lora` and Ollama's `ADAPTER`.

llama.cpp adds (alpha / rank) B A x to W x, with one alpha for the file. The rows of B are ordered as those of W, so for
query and key of the Llama family they are permuted with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from wishbone.errors import RequestError, some_of
from wishbone.model.agreement import sequence_logps
from wishbone.model.gguf_architecture import TensorNames, family_of

PREFIX = "base_model.model."
HALVES = (".lora_A.weight", ".lora_B.weight")


def write_gguf_adapter(model: PeftModel, file: Path, name: str) -> None:
    """Write the active adapter as a GGUF file, in float32.

    Raises:
        RequestError: the adapter is more than LoRA on linear layers, or GGUF has no place for it.
        OSError: the disk is full or fails.
    """
    base = model.get_base_model()
    config: Any = model.peft_config[model.active_adapter]
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    if strange := [key for key in state if not key.endswith(HALVES)]:
        raise RequestError(
            f"a GGUF adapter holds LoRA on linear layers, and this one has {some_of(strange)} too; use --gguf, which "
            "merges all of it"
        )
    names = TensorNames(base.config)
    layers = sorted(key.removesuffix(HALVES[0]) for key in state if key.endswith(HALVES[0]))
    theirs = names.named([f"{layer.removeprefix(PREFIX)}.weight" for layer in layers])
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[family_of(base.config).architecture])
    try:
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(config.lora_alpha))
        for layer, (ours, stored) in zip(layers, theirs.items(), strict=True):
            a, b = (state[layer + half].float().cpu() for half in HALVES)
            scaling = model.get_submodule(layer).scaling[model.active_adapter]
            scaled = (b * (scaling * a.shape[0] / config.lora_alpha)).numpy()
            writer.add_tensor(f"{stored}.lora_a", a.numpy())
            writer.add_tensor(f"{stored}.lora_b", names.form(ours, scaled))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


@torch.no_grad()
def adapter_logps(model: PeftModel, file: Path, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-probabilities of texts with the adapter of a GGUF file instead of the one in memory.

    The adapter's layers are merged as W + (alpha / rank) B A from what the file says, so this does not rest on how PEFT
    scales. The model is what it was afterwards.
    """
    reader = GGUFReader(file)
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    base = model.get_base_model()
    names = TensorNames(base.config)
    changed: dict[str, Tensor] = {}
    weights = {
        name.replace(".base_layer", ""): weight
        for name, weight in base.named_parameters()
        if ".lora_" not in name and name.endswith(".weight")
    }
    with model.disable_adapter():
        for ours, theirs in names.named(list(weights)).items():
            if f"{theirs}.lora_a" not in stored:
                continue
            a, b = stored[f"{theirs}.lora_a"], names.unform(ours, stored[f"{theirs}.lora_b"])
            weight = weights[ours]
            changed[ours] = weight.clone()
            added = torch.from_numpy(np.ascontiguousarray(b @ a)).to(weight.device) * (alpha / a.shape[0])
            weight.copy_(weight.float() + added)
        try:
            return sequence_logps(model, sequences)
        finally:
            for ours, former in changed.items():
                weights[ours].copy_(former)
