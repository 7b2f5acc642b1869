"""A model of the same architecture as another, with small layers and random weights.

Which code a layer runs depends on its class, on flags of the configuration and on its place, not on its width. So the
small model keeps every layer, the head dimension and every flag, and makes hidden sizes, heads, experts and vocabulary
small. It fits into the memory of any machine, and no weights are read.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from wishbone.errors import RequestError, one_line

HEADS, HIDDEN, EXPERTS, RANK, VOCABULARY = 2, 64, 4, 16, 512
AT_MOST = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": RANK,
    "intermediate_size": 2 * HIDDEN,
    "moe_intermediate_size": HIDDEN,
    "intermediate_size_mlp": 2 * HIDDEN,
    "shared_expert_intermediate_size": HIDDEN,
    "moe_shared_expert_intermediate_size": HIDDEN,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "linear_num_key_heads": HEADS,
    "linear_num_value_heads": HEADS,
    "num_global_key_value_heads": 1,
    "mamba_chunk_size": RANK,
    "chunk_size": RANK,
    "mamba_d_state": RANK,
    "ssm_state_size": RANK,
    "state_size": RANK,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": RANK,
    "kv_lora_rank": RANK,
}
"""Sizes by the names that configurations give them."""
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
IMPOSSIBLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What an architecture raises whose sizes do not go together when they are small."""


def small_model(config: PretrainedConfig) -> PreTrainedModel:
    """Return a causal language model of the architecture of `config` with small layers, float32, on the CPU.

    Of a model that sees or hears, it is the part that reads text. The global random state stays as it was.

    Raises:
        RequestError: the architecture cannot be built with small layers.
    """
    try:
        small = _shrunk(config.get_text_config())
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
            for weight in model.parameters():
                if weight.ndim > 1:  # larger than at the start of training, so that every layer counts
                    torch.nn.init.normal_(weight, std=1.5 / weight.shape[-1] ** 0.5)
    except IMPOSSIBLE as error:
        raise not_small(config, error) from error
    return model.eval()


def not_small(config: PretrainedConfig, error: BaseException) -> RequestError:
    """Return the error for an architecture that does not run with small layers."""
    return RequestError(
        f"a model of the kind {config.model_type!r} does not run with small layers ({one_line(error)}); train it, and "
        "the run counts the parts of the model itself and writes them to summary.json"
    )


def _shrunk(config: PretrainedConfig) -> PretrainedConfig:
    fields = config.to_dict()
    heads, hidden = fields.get("num_attention_heads"), fields.get("hidden_size")
    if heads and hidden:
        width = fields.get("head_dim") or hidden // heads
        key_heads = fields.get("num_key_value_heads") or heads
        fields |= {"num_attention_heads": HEADS, "hidden_size": HEADS * width}
        for name in ("head_dim", "num_key_value_heads"):
            if name in fields:
                fields[name] = width if name == "head_dim" else HEADS if key_heads == heads else 1
    fields |= {name: 0 for name in TOKENS if fields.get(name) is not None}
    of_layers = fields.get("per_layer_config") or {}
    for some in (fields, *(of_layers.values() if isinstance(of_layers, dict) else of_layers)):
        some |= {name: _at_most(some[name], most) for name, most in AT_MOST.items() if name in some}
    fields.pop("quantization_config", None)
    return type(config).from_dict(fields)


def _at_most(size: Any, most: int) -> Any:
    """A size of the small model; some configurations have one for each layer."""
    if isinstance(size, list | tuple):
        return [_at_most(one, most) for one in size]
    return min(size, most) if isinstance(size, int) else size
