"""Which layers and experts of a checkpoint in FP8 are loaded as codes.

Those whose weights are float8_e4m3fn in its files. The headers of the files say so, and whether a scale belongs to a
row, to a block of 128 x 128 or to the whole weight; config.json is not trusted with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from wishbone.errors import RequestError, some_of
from wishbone.model.eight_bit_linear import BLOCKS, ROWS
from wishbone.model.quantized_experts import is_stack
from wishbone.ops.frozen_linear.fp8 import BLOCK
from wishbone.ops.frozen_linear.scaled_product import MULTIPLE

EXPERT = re.compile(r"\.experts\.\d+\.")
"""In names of weights of one expert, as checkpoints have them."""
SCALE_DTYPES = frozenset({"F32", "BF16", "F16", "F8_E8M0"})


@dataclass(frozen=True)
class StoredScales:
    """Scales of one weight in a checkpoint: the name of their parameter, and their shape there."""

    parameter: str
    shape: tuple[int, ...]


def stored_layers(model: PreTrainedModel, files: Sequence[str]) -> tuple[dict[str, StoredScales], bool]:
    """Return the linear layers whose weights the checkpoint stores as codes with the scales of each, and whether it
    stores those of experts so.

    Raises:
        RequestError: there are codes that belong to no linear layer, or whose scales are of no known form.
    """
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (no iterator)
                part = opened.get_slice(key)
                tensors[key] = (part.get_dtype(), tuple(part.get_shape()))
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    layers: dict[str, StoredScales] = {}
    has_stacks = any(is_stack(model, name) for name, _ in model.named_parameters())
    homeless: list[str] = []
    unscaled: list[str] = []
    odd: list[str] = []
    experts: list[str] = []
    whole: list[str] = []
    for key, (dtype, shape) in tensors.items():
        stem, _, last = key.rpartition(".")
        if dtype != "F8_E4M3":
            whole += [key] if last == "weight" and EXPERT.search(stem) else []
            continue
        if has_stacks and last == "weight" and EXPERT.search(stem):
            blocks = tuple(-(-size // BLOCK) for size in shape)
            (experts if tensors.get(f"{stem}.{BLOCKS}", ("", ()))[1] == blocks else unscaled).append(key)
            continue
        name = next((n for n in _names(stem, model.base_model_prefix) if n in linear), None)
        if last != "weight" or name is None:
            homeless.append(key)
            continue
        scales = _scales_of(stem, shape, tensors)
        if scales is None:
            unscaled.append(key)
        elif shape[0] % MULTIPLE or shape[1] % MULTIPLE:
            odd.append(key)
        else:
            layers[name] = scales
    problems = [
        f"{len(keys)} FP8 weights of the checkpoint {what} ({some_of(keys)}); name the 16-bit model it was made from"
        for keys, what in (
            (homeless, "belong to no linear layer"),
            (unscaled, f"have no scales of rows or of blocks of {BLOCK} x {BLOCK}"),
            (odd, f"have sizes that are not multiples of {MULTIPLE}"),
        )
        if keys
    ]
    if experts and whole:
        problems.append(
            f"the checkpoint stores {len(experts)} weights of experts in FP8 and {len(whole)} others whole "
            f"({some_of(whole)}); name the 16-bit model it was made from"
        )
    if not layers and not experts and not problems:
        problems = [
            "its config.json says that it is in FP8, but no weight is float8_e4m3fn; remove quantization_config from it"
        ]
    if problems:
        raise RequestError(problems)
    return layers, bool(experts)


def _scales_of(
    stem: str, weight: tuple[int, ...], tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> StoredScales | None:
    blocks = tuple(-(-size // BLOCK) for size in weight)
    for parameter in (ROWS, BLOCKS):
        dtype, shape = tensors.get(f"{stem}.{parameter}", ("", ()))
        if dtype in SCALE_DTYPES and shape in ((), (1,), (1, 1), weight[:1], (weight[0], 1), blocks):
            return StoredScales(parameter, shape)
    return None


def _names(stem: str, prefix: str) -> Iterator[str]:
    """Yield the names that a module may have in the model: with or without the prefix of the backbone."""
    yield stem
    yield f"{prefix}.{stem}"
    yield stem.removeprefix(f"{prefix}.")
