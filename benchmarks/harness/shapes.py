"""Shapes of published models that are no Llama: mixtures of experts and hybrids, with random weights.

Sizes are those of the configurations on the hub; where there are fewer layers, a comment has the published number. LoRA
lies on the linear layers that are named here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.workloads import MAX_LENGTH

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
STACKS = ("experts.gate_up_proj", "experts.down_proj")
"""Stacked weights of a mixture's experts."""

SMALL = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16,
}  # fmt: skip
"""Sizes with which a CPU trains, too."""


@dataclass(frozen=True)
class Shape:
    """Layers of a published model.

    Attributes:
        kind: class of transformers' configuration.
        sizes: its arguments.
        tiny: what small models change of `sizes` and `SMALL`.
        linears: linear layers that get adapters.
    """

    kind: str
    sizes: dict[str, Any]
    tiny: dict[str, Any] = field(default_factory=dict)
    linears: tuple[str, ...] = ATTENTION

    @property
    def small(self) -> dict[str, Any]:
        """Arguments of the small model."""
        return {**self.sizes, **SMALL, **self.tiny}


def _kinds(pattern: str, names: dict[str, str]) -> list[str]:
    """Return the kind of each layer, one letter a layer."""
    return [names[letter] for letter in pattern]


MIXTURES = {
    "qwen3-30b-a3b": Shape(
        "Qwen3MoeConfig",
        {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
         "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "num_attention_heads": 32,
         "num_key_value_heads": 4, "head_dim": 128, "num_hidden_layers": 16},  # of 48
        {"moe_intermediate_size": 64, "num_hidden_layers": 2},
    ),
    "gpt-oss-20b": Shape(
        "GptOssConfig",
        {"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32,
         "num_experts_per_tok": 4, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
         "sliding_window": 128, "num_hidden_layers": 8},  # of 24
        {"num_hidden_layers": 2},
    ),
}  # fmt: skip
HYBRIDS = {
    "qwen3.5-2b": Shape(
        "Qwen3_5TextConfig",
        {"vocab_size": 248320, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
         "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16,
         "linear_num_value_heads": 16, "tie_word_embeddings": True},
        {"num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
         "linear_value_head_dim": 16},
        (*ATTENTION, *MLP, "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
    ),
    "granite-4-2b": Shape(
        "GraniteMoeHybridConfig",
        {"vocab_size": 100352, "hidden_size": 2048, "intermediate_size": 8192, "shared_intermediate_size": 8192,
         "num_hidden_layers": 24,  # of 40 of granite-4.0-h-micro
         "layer_types": _kinds("mmmmmammmmmmmmmammmmmmmm", {"m": "mamba", "a": "attention"}),
         "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 0, "num_experts_per_tok": 0,
         "mamba_n_heads": 64, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4,
         "mamba_expand": 2, "mamba_chunk_size": 256, "embedding_multiplier": 12, "residual_multiplier": 0.22,
         "attention_multiplier": 0.015625, "logits_scaling": 8, "position_embedding_type": "nope",
         "tie_word_embeddings": True, "router_aux_loss_coef": 0.0},  # no experts; TRL would look for them
        {"shared_intermediate_size": 64, "num_hidden_layers": 2, "layer_types": ["mamba", "attention"],
         "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 16},
        (*ATTENTION, "input_linear", "output_linear", "in_proj", "out_proj"),
    ),
    "lfm2-2.6b": Shape(
        "Lfm2Config",
        {"vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 10752, "block_auto_adjust_ff_dim": False,
         "num_hidden_layers": 30, "num_attention_heads": 32, "num_key_value_heads": 8,
         "layer_types": _kinds("ccacca" + "ccca" * 4 + "ccaccacc", {"c": "conv", "a": "full_attention"}),
         "tie_word_embeddings": True},
        {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
        ("q_proj", "k_proj", "v_proj", "in_proj", "out_proj", "w1", "w2", "w3"),
    ),
    "nemotron-h-4b": Shape(
        "NemotronHConfig",
        {"vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 12288,
         "layers_block_type": _kinds("M-M-M-M*-M-M-M-M-M*-M-M-", {"M": "mamba", "-": "mlp", "*": "attention"}),  # of 52
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "mamba_num_heads": 112,
         "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "chunk_size": 128},
        {"layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 4, "mamba_head_dim": 16,
         "n_groups": 2, "ssm_state_size": 16, "chunk_size": 16},
        (*ATTENTION, "up_proj", "down_proj", "in_proj"),  # PEFT refuses out_proj in this family
    ),
    "falcon-h1-1.5b": Shape(
        "FalconH1Config",
        {"vocab_size": 65537, "hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "mamba_d_ssm": 3072, "mamba_n_heads": 48,
         "mamba_d_head": 64, "mamba_d_state": 256, "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_chunk_size": 256},
        {"num_hidden_layers": 2, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16,
         "mamba_chunk_size": 16},
        (*ATTENTION, *MLP, "in_proj"),  # PEFT refuses out_proj in this family, too
    ),
    "jamba-3b": Shape(
        "JambaConfig",
        {"vocab_size": 65536, "hidden_size": 2560, "intermediate_size": 8192, "num_hidden_layers": 28,
         "num_attention_heads": 20, "num_key_value_heads": 1, "num_experts": 1, "num_experts_per_tok": 1,
         "attn_layer_period": 14, "attn_layer_offset": 7, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2,
         "mamba_dt_rank": 160, "tie_word_embeddings": True},
        {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
        (*ATTENTION, *MLP, "in_proj", "x_proj", "out_proj"),
    ),
}  # fmt: skip
SHAPES = MIXTURES | HYBRIDS


def config_of(name: str, *, layers: int | None = None, tiny: bool = False) -> Any:
    """Return the configuration of a shape.

    Args:
        name: of the shape.
        layers: how many, instead of the shape's own.
        tiny: small sizes instead.
    """
    import transformers

    shape = SHAPES[name]
    sizes = (shape.small if tiny else shape.sizes) | ({"num_hidden_layers": layers} if layers else {})
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return getattr(transformers, shape.kind)(**sizes, **special, max_position_embeddings=2 * MAX_LENGTH)


def shaped_model(name: str, device: Any, dtype: Any, *, layers: int | None = None, tiny: bool = False) -> Any:
    """Return a model in a shape with random weights on `device`, the same every time on one kind of device."""
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(name, layers=layers, tiny=tiny)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
