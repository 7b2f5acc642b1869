"""Merging: W' = W + (alpha / rank) B A once and for all, so that a model runs without an adapter.

W are the original 16-bit weights. A model that was trained on 4-bit weights is loaded in 16 bits first, so that the
merged model does not inherit their rounding. PEFT merges layer by layer (and knows DoRA, rank stabilization and
adapters on embeddings), in float32, and the sum is rounded to 16 bits once.

The sum is rounded at random (`ops/low_rank_add`), so that E[W'] is the sum. DPO adds mostly less than half a step of
bfloat16 to a weight: rounded to the nearest, W' would mostly be W, and most of the adapter would be lost.

A merge is accepted if the files that were written, loaded again, give the log-probabilities of the adapter model on
real text. Rounding changes them a little, and how much is measured: the sum is rounded a second time, with other random
numbers. The errors of the two roundings are independent and zero on average, so each differs from the sum by about 0.7
of what they differ by from each other. The merge may differ from the adapter by three times as much as from the second
rounding (a mixture of experts, where rounding can send a token to another expert, needed 1.9). An error in the sum
itself is the same in both, so it adds to the first difference and not to the second.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from wishbone.errors import RequestError
from wishbone.model.agreement import difference, real_sequences, sequence_logps
from wishbone.model.atomic_directory import beside
from wishbone.model.load import load_model, resolve_model, saved_with_processor
from wishbone.model.merged_weights import active_adapters, base_of, merged_weights
from wishbone.model.quantization import dequantized, is_quantized
from wishbone.model.saved_adapter import not_finite
from wishbone.paths import user_path

PLAIN_INITIALIZATIONS = (True, False, "gaussian", "eva")
"""Initializations of an adapter that do not change the base model's weights."""
FLOAT_NOISE = 1e-4
"""Nats a token by which the same float32 arithmetic in another order differs at most."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merge:
    """A merge, and how closely it agrees with the adapter model.

    Attributes:
        directory: where the merged model is.
        dtype: of its weights.
        difference: mean |log p merged - log p adapter| over tokens of real text, in nats.
        allowed: the difference that rounding to `dtype` explains, three times that of two roundings.
        largest, allowed_largest: the same of the token that differs most.
        quantization: the same difference to the quantized model that was trained; None if it was not quantized.
    """

    directory: Path
    dtype: torch.dtype
    difference: float
    allowed: float
    largest: float
    allowed_largest: float
    quantization: float | None = None


def merge_adapter(
    model: nn.Module,
    directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    *,
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
    sequences: Sequence[Sequence[int]] | None = None,
    replace: bool = False,
) -> Merge:
    """Write the model with its active adapter merged into its weights; the model itself does not change.

    Args:
        model: a PEFT model, or one that PEFT has put adapters into; without an adapter its weights are written alone.
        directory: files in it with the same names are replaced; on failure nothing changes.
        tokenizer: of the model, or its processor; written beside the weights, and used for the comparison.
        max_shard_size: of a file of weights.
        dtype: of the weights that are written; None is the model's own 16 bits. In float32 nothing is rounded.
        sequences: token ids of the texts of the comparison; None: a few texts of several kinds.
        replace: nothing of what the directory held stays.

    Raises:
        RequestError: the adapter has NaN or infinite values, the directory holds an adapter or the base model, the
            16-bit weights are not found, or the merged model differs from the adapter model by more than rounding.
    """
    target = user_path(directory).absolute()
    problems = [*_unusable(target, model), *not_finite(model)]
    if problems:
        raise RequestError(problems)
    sequences = sequences or real_sequences(getattr(tokenizer, "tokenizer", tokenizer))
    trained = sequence_logps(model, sequences) if is_quantized(model) else None
    dtype = dtype or _sixteen_bits(model)
    whole = _in_sixteen_bits(model, dtype) if trained is not None else model
    expected = sequence_logps(whole, sequences)
    with beside(target, replace=replace) as temporary:
        _write(whole, temporary, dtype, max_shard_size)
        tokenizer.save_pretrained(temporary)
        base = base_of(whole)
        merged, _ = load_model(
            str(temporary),
            dtype=base.dtype,
            device=base.device,
            trust_remote_code=base.is_remote_code(),
            images=saved_with_processor(temporary),
        )
        found = sequence_logps(merged, sequences)
        merged.load_state_dict(merged_weights(base, dtype, again=True), strict=False)
        second = sequence_logps(merged, sequences)
        allowed = 3 * difference(second, found) + FLOAT_NOISE
        result = Merge(
            target,
            dtype,
            difference=difference(found, expected),
            allowed=allowed,
            largest=float((found - expected).abs().max()),
            allowed_largest=3 * float((second - found).abs().max()) + 10 * FLOAT_NOISE,
            quantization=None if trained is None else difference(found, trained),
        )
        if not result.difference <= allowed:
            raise RequestError(
                f"the merged model differs from the adapter model by {result.difference:.2g} nats a token, and "
                f"rounding to {dtype} explains {allowed:.2g}; nothing was written. Save the adapter itself instead"
            )
    logger.debug(
        "merged into %s: %.2g nats a token from the adapter model, of %.2g that rounding explains",
        target,
        result.difference,
        allowed,
    )
    return result


def _unusable(target: Path, model: nn.Module) -> list[str]:
    """Return why a merged model must not be written to `target`."""
    if target.is_file():
        return [f"{str(target)!r} is a file; name a directory"]
    source = Path(base_of(model).name_or_path or "?")
    if target.exists() and source.exists() and target.samefile(source):
        return [f"{str(target)!r} is the base model's own directory; name another one"]
    if (target / "adapter_config.json").exists():
        return [f"{str(target)!r} holds an adapter; name a directory of its own for the model"]
    return []


def _sixteen_bits(model: nn.Module) -> torch.dtype:
    """Return the 16-bit dtype of the model in memory, else of its checkpoint, else bfloat16."""
    base = base_of(model)
    found: Any = base.dtype
    if found not in (torch.bfloat16, torch.float16) and base.name_or_path:
        try:
            config, _ = PretrainedConfig.get_config_dict(resolve_model(base.name_or_path), revision=_revision(base))
        except (OSError, RequestError):
            config = {}
        found = config.get("dtype", config.get("torch_dtype"))
    return torch.float16 if found in ("float16", torch.float16) else torch.bfloat16


def _revision(base: PreTrainedModel) -> str | None:
    return None if Path(base.name_or_path).exists() else getattr(base.config, "_commit_hash", None)


def _in_sixteen_bits(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the adapter on the 16-bit weights that its quantized base was made from, on its device if they fit."""
    quantized = base_of(model)
    if not quantized.name_or_path:
        raise RequestError("it is not known where the model's 16-bit weights are; set model.config.name_or_path")
    device = quantized.device
    if device.type == "cuda" and 2 * quantized.num_parameters() > 0.8 * torch.cuda.mem_get_info(device)[0]:
        device = torch.device("cpu")
    base: Any
    base, _ = load_model(
        quantized.name_or_path,
        dtype=torch.float32 if device.type == "cpu" else dtype,
        device=device,
        revision=_revision(quantized),
        trust_remote_code=quantized.is_remote_code(),
    )
    if is_quantized(base):
        logger.warning(
            "%s has quantized weights only; the adapter is merged into the values of these.",
            quantized.name_or_path,
        )
        base = dequantized(base)
    rows = quantized.get_input_embeddings().weight.shape[0]
    if base.get_input_embeddings().weight.shape[0] != rows:
        base.resize_token_embeddings(rows)
        for mine, theirs in (
            (base.get_input_embeddings(), quantized.get_input_embeddings()),
            (base.get_output_embeddings(), quantized.get_output_embeddings()),
        ):
            mine.load_state_dict(theirs.state_dict())
    adapters = active_adapters(model)
    if not adapters:
        return cast(nn.Module, base)
    if len(adapters) > 1:
        raise RequestError(
            f"{len(adapters)} adapters are active ({', '.join(adapters)}); activate one with set_adapter"
        )
    configs: Any = model.peft_config
    config = copy.deepcopy(configs[adapters[0]])
    if (start := config.init_lora_weights) not in PLAIN_INITIALIZATIONS:
        raise RequestError(
            f"the adapter was made with init_lora_weights={start!r}, which changes the base's weights, and they are "
            "quantized now; save the adapter itself, or train it on 16-bit weights"
        )
    config.init_lora_weights = True
    config.base_model_name_or_path = base.name_or_path or None  # as PEFT sets it, which warns where it was another
    whole: nn.Module = get_peft_model(base, config)
    weights = get_peft_model_state_dict(model, adapter_name=adapters[0], save_embedding_layers=False)
    prefix = "base_model.model."
    set_peft_model_state_dict(whole, {prefix + key.removeprefix(prefix): value for key, value in weights.items()})
    whole.eval()
    return whole


def _write(model: nn.Module, directory: Path, dtype: torch.dtype, max_shard_size: int | str) -> None:
    """Write the merged weights and the configuration."""
    base = base_of(model)
    weights = merged_weights(base, dtype)
    base.save_pretrained(directory, state_dict=weights, max_shard_size=max_shard_size)
    config = copy.deepcopy(base.config)
    config.dtype = dtype
    embedding, head = (f"{name}.weight" for name in _embedding_names(base))
    if weights.get(embedding) is not weights.get(head, weights.get(embedding)):
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
    config.save_pretrained(directory)


def _embedding_names(base: PreTrainedModel) -> tuple[str, str]:
    """Return the names of the input embedding and of the output head."""
    both = (base.get_input_embeddings(), base.get_output_embeddings())
    names = [next((name for name, module in base.named_modules() if module is wanted), "") for wanted in both]
    return names[0], names[1]
