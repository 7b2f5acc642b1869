"""The text-only stand-in models: each family's configuration, made small.

The names are those of TRL's tiny models. Each model has two layers, or one layer of every kind that its family mixes,
so that every branch of the modelling code runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

TEXT: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SLIDING_AND_FULL = ["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Family:
    """How to make one stand-in.

    Attributes:
        prefix: prefix of transformers' class names: `prefix + "Config"`, and so on.
        fields: fields of the configuration. A token stands for its id and "VOCABULARY" for the vocabulary's size; the
            tokenizer resolves both, and `vocab_size` is added.
        image: what the chat template writes in place of an image.
        tokens: special tokens that the family's processor looks up by name.
        processor: makes a vision model's processor from its tokenizer; None for text-only models.
        padded: whether the tokenizer has a padding token.
    """

    prefix: str
    fields: dict[str, Any]
    image: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    processor: Callable[[PreTrainedTokenizerFast], Any] | None = None
    padded: bool = True


TEXT_FAMILIES: dict[str, Family] = {
    "Cohere2ForCausalLM": Family("Cohere2", {**TEXT, "layer_types": SLIDING_AND_FULL, "logit_scale": 1.0}),
    "Glm4MoeForCausalLM": Family("Glm4Moe", {**TEXT, **EXPERTS, "n_routed_experts": 4, "head_dim": 8}),
    "GptOssForCausalLM": Family("GptOss", {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Lfm2ForCausalLM": Family("Lfm2", {**TEXT, "full_attn_idxs": [1], "block_multiple_of": 8}),
    "Lfm2ForCausalLM-2.5": Family(
        "Lfm2", {**TEXT, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    ),
    "MistralForCausalLM-0.2": Family("Mistral", {**TEXT, "sliding_window": None}, padded=False),
    "NemotronHForCausalLM-nano": Family(
        "NemotronH",
        {
            **TEXT,
            **EXPERTS,
            "hidden_size": 16,
            "head_dim": 8,
            "layers_block_type": ["mamba", "attention", "moe"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 4,
            "n_groups": 1,
            "ssm_state_size": 16,
            "n_routed_experts": 4,
            "moe_shared_expert_intermediate_size": 32,
        },
    ),
    "Olmo3ForCausalLM": Family("Olmo3", {**TEXT, "layer_types": SLIDING_AND_FULL}),
    "Qwen2ForCausalLM-2.5": Family("Qwen2", TEXT),
    "Qwen3MoeForCausalLM": Family("Qwen3Moe", {**TEXT, **EXPERTS, "num_experts": 4, "head_dim": 8}),
}

TRAJECTORY = Family("Qwen2", {**TEXT, "hidden_size": 64, "num_attention_heads": 2})
"""Stands in for the model that TRL's invariant tests train for 50 steps."""
