"""How a model of transformers is described in GGUF: its architecture, its hyperparameters, and its tensors.

The names of tensors are those of gguf-py's maps. Three things differ from transformers, as llama.cpp's graphs expect:

- In the Llama family the rows of query and key are permuted within a head, from halves (i, i + d / 2) that rotate
  together to neighbours (2 i, 2 i + 1).
- Gemma's norms multiply by 1 + w in transformers and by w in GGUF.
- Rotary frequencies that a model rescales (Llama 3, Phi 3 with long contexts) are a tensor of factors.

Only what llama.cpp computes in the same way is described; a setting that its graphs do not know is refused.
Sources: llama.cpp, gguf-py/gguf/constants.py and src/llama-model.cpp; docs/gguf.md of ggml.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map
from transformers import PretrainedConfig

from wishbone.errors import RequestError, counted, some_of

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Family:
    """How models of one type are written.

    Attributes:
        architecture: of GGUF.
        permuted: whether rows of query and key are permuted.
        norm_offset: what is added to the weights of norms.
    """

    architecture: MODEL_ARCH
    permuted: bool = False
    norm_offset: float = 0.0


FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, permuted=True),
    "mistral": Family(MODEL_ARCH.LLAMA, permuted=True),
    "qwen2": Family(MODEL_ARCH.QWEN2),
    "qwen3": Family(MODEL_ARCH.QWEN3),
    "gemma2": Family(MODEL_ARCH.GEMMA2, norm_offset=1.0),
    "gemma3_text": Family(MODEL_ARCH.GEMMA3, norm_offset=1.0),
    "phi3": Family(MODEL_ARCH.PHI3),
}
"""By model type of transformers. SmolLM and SmolLM2 are `llama`, Phi 4 is `phi3`."""
GEMMA_PERIODS = {"gemma2": 2, "gemma3_text": 6}
"""Every how many layers llama.cpp's graph attends to all tokens; the others have the window."""
ROPES = ("default", "linear", "llama3", "yarn", "longrope")


def family_of(config: PretrainedConfig) -> Family:
    """Return how models of this type are written.

    Raises:
        RequestError: the type is not known here, or a setting is one that llama.cpp's graph of it does not have.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise RequestError(f"models of type {config.model_type!r} are not known here; known: {', '.join(FAMILIES)}")
    if problems := list(_unknown_settings(config)):
        raise RequestError([f"GGUF cannot hold this model: {problem}" for problem in problems])
    return family


def _unknown_settings(config: PretrainedConfig) -> Iterator[str]:
    kind = config.model_type
    rope = _rope(config)
    if rope["rope_type"] not in ROPES:
        yield f"its rotary embedding is of the type {rope['rope_type']!r}; known are {', '.join(ROPES)}"
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    wanted = ("gelu_pytorch_tanh", "gelu_tanh") if kind.startswith("gemma") else ("silu", "swish")
    if activation not in wanted:
        yield f"its activation is {activation!r} and llama.cpp's graph has {wanted[0]}"
    if kind in GEMMA_PERIODS:
        scale, head = config.query_pre_attn_scalar, _head_size(config)
        if scale != head:
            yield f"it divides attention by the root of {scale} and llama.cpp by that of the head size {head}"
        period = GEMMA_PERIODS[kind]
        expected = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(_layers(config))]
        if list(config.layer_types) != expected:
            yield f"llama.cpp expects full attention in every layer of {period} and the window in the others"
    if kind == "qwen2" and getattr(config, "use_sliding_window", False):
        yield "some of its layers attend to a window, which llama.cpp's graph does not have"
    if kind == "llama" and getattr(config, "mlp_bias", False):
        yield "its MLPs have biases"


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    """The settings of the rotary embedding, of Gemma 3 those of the layers with full attention."""
    found: Mapping[str, Any] = config.rope_parameters or {}
    if isinstance(inner := found.get("full_attention"), Mapping):
        found = inner
    return {"rope_type": "default", **found}


def _head_size(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _layers(config: PretrainedConfig) -> int:
    return int(config.num_hidden_layers)


def write_hyperparameters(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Add the hyperparameters of a model to a file that is being written."""
    head, rope = _head_size(config), _rope(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(_layers(config))
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if config.model_type == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
    if config.model_type in GEMMA_PERIODS:
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(_original_context(config, rope))
        writer.add_rope_scaling_attn_factors(_attention_factor(config, rope))


def rope_factors(config: PretrainedConfig) -> dict[str, Array]:
    """Return the tensors by which llama.cpp divides rotary frequencies, by their names in GGUF; mostly none."""
    rope = _rope(config)
    if rope["rope_type"] == "longrope":
        return {
            "rope_factors_long.weight": np.array(rope["long_factor"], np.float32),
            "rope_factors_short.weight": np.array(rope["short_factor"], np.float32),
        }
    if rope["rope_type"] != "llama3":
        return {}
    head, factor = _head_size(config), float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = int(rope["original_max_position_embeddings"])
    wavelengths = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, head, 2) / head)
    share = np.clip((original / wavelengths - low) / (high - low), 0, 1)  # of the unscaled frequency
    return {"rope_freqs.weight": (1 / ((1 - share) / factor + share)).astype(np.float32)}


def _original_context(config: PretrainedConfig, rope: Mapping[str, Any]) -> int:
    found = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(found or config.max_position_embeddings)


def _attention_factor(config: PretrainedConfig, rope: Mapping[str, Any]) -> float:
    """What transformers multiplies the rotary embedding by: sqrt(1 + ln(scale) / ln(original length))."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = _original_context(config, rope)
    scale = float(rope.get("factor") or config.max_position_embeddings / original)
    return 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(original))


class TensorNames:
    """Names and forms of a model's tensors in GGUF."""

    def __init__(self, config: PretrainedConfig) -> None:
        self._config = config
        self._family = family_of(config)
        self._map = get_tensor_name_map(self._family.architecture, _layers(config))

    def named(self, names: list[str]) -> dict[str, str]:
        """Return the names in GGUF of tensors of transformers; a tied output head has none.

        Raises:
            RequestError: a tensor has no place in GGUF.
        """
        found: dict[str, str] = {}
        unknown = []
        for name in names:
            if name == "lm_head.weight" and self._config.tie_word_embeddings:
                continue
            theirs = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
            if theirs is None:
                unknown.append(name)
            else:
                found[name] = theirs
        if unknown:
            raise RequestError(f"GGUF has no place for {counted(len(unknown), 'tensor')} ({some_of(unknown)})")
        return found

    def form(self, name: str, tensor: Array) -> Array:
        """Return a tensor as GGUF holds it, rows of query and key in its order; also B of an adapter for such rows."""
        if self._family.norm_offset and name.endswith("norm.weight"):
            return tensor + np.float32(self._family.norm_offset)
        heads = self._heads(name)
        if not heads:
            return tensor
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)

    def unform(self, name: str, tensor: Array) -> Array:
        """Undo `form` for rows of query and key."""
        heads = self._heads(name)
        if not heads:
            return tensor
        pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)

    def _heads(self, name: str) -> int:
        """Heads of a tensor whose rows are permuted, else 0."""
        if not self._family.permuted:
            return 0
        if ".q_proj." in name:
            return int(self._config.num_attention_heads)
        return int(self._config.num_key_value_heads) if ".k_proj." in name else 0
