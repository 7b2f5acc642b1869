"""Tiny random causal language models, tokenizers and pairs, for every test that needs some.

`from tiny import tiny_model, tiny_tokenizer, tiny_pairs`. Weights are drawn large, so that attention is far from
uniform and logits differ by more than rounding: a token that sees what it must not shows up in the first digits.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 128
WINDOW = 8

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_HEAD_DIM = {"head_dim": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW, **_HEAD_DIM},
    "qwen2": {},
    "qwen3": _HEAD_DIM,
    "gemma2": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        **_HEAD_DIM,
    },
    "gemma3_text": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        **_HEAD_DIM,
    },
    "phi3": {"sliding_window": None},
    "olmo2": {},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layer_interval": 4},
    "gpt_neox": {"num_key_value_heads": None},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_EXPERTS, **_HEAD_DIM},
    "mamba": {"state_size": 8, "num_attention_heads": None, "num_key_value_heads": None},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_next": {
        **_EXPERTS,
        **_HEAD_DIM,
        "layer_types": ["linear_attention", "full_attention"],
        "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}
_DELTA_RULE: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_WINDOWED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma": _HEAD_DIM,
    "gemma4_text": {
        **_HEAD_DIM,
        **_WINDOWED,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 0,
    },
    "cohere2": {"logit_scale": 0.25, **_WINDOWED},
    "olmo": {},
    "olmo3": _WINDOWED,
    "glm": _HEAD_DIM,
    "glm4": _HEAD_DIM,
    "glm4_moe": {**_HEAD_DIM, **_ROUTED},
    "deepseek_v3": {**_LATENT, **_ROUTED, "n_group": 2},
    "youtu": _LATENT,
    "minicpm3": _LATENT,
    "ernie4_5": _HEAD_DIM,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1},
    "ministral": {**_HEAD_DIM, **_WINDOWED},
    "ministral3": _HEAD_DIM,
    "seed_oss": {**_HEAD_DIM, "attention_dropout": 0.0},
    "hunyuan_v1_dense": _HEAD_DIM,
    "exaone4": _WINDOWED,
    "arcee": {},
    "helium": {"head_dim": 8},
    "starcoder2": {},
    "apertus": {},
    "phi": {},
    "persimmon": {"num_key_value_heads": None},
    "cwm": {},
    "hyperclovax": {},
    "vaultgemma": _HEAD_DIM,
    "bitnet": {},
    "olmoe": _EXPERTS,
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 32},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "minimax_m2": {**_HEAD_DIM, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**_HEAD_DIM, **_WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "doge": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
    "llama4_text": {
        **_HEAD_DIM,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 64,
        "interleave_moe_layer_step": 1,
        "num_hidden_layers": 4,
        "attention_chunk_size": 64,
        "floor_scale": 64,
        "attn_scale": 2.0,
    },
    "stablelm": {},
    "nemotron": {},
    "diffllama": {},
    "bloom": {},
    "mpt": {"max_seq_len": 256},
    "falcon": {},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "qwen3_5_text": {**_HEAD_DIM, **_DELTA_RULE},
    "qwen3_5_moe_text": {**_HEAD_DIM, **_DELTA_RULE, **_EXPERTS, "shared_expert_intermediate_size": 32},
    "olmo_hybrid": _DELTA_RULE,
    "kimi_linear": {
        **_LATENT,
        **_ROUTED,
        "q_lora_rank": None,
        "layer_types": ["linear_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse"],
        "linear_num_heads": 4,
        "linear_head_dim": 8,
    },
    "bamba": {**_MAMBA2, "attn_layer_indices": [1], "num_hidden_layers": 2},
    "granitemoehybrid": {
        **_MAMBA2,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 64,
    },
    "nemotron_h": {
        **_HEAD_DIM,
        "num_hidden_layers": None,
        "layers_block_type": ["mamba", "attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "ssm_state_size": 8,
        "chunk_size": 8,
    },
    "falcon_h1": {**_MAMBA2, **_HEAD_DIM, "mamba_d_ssm": 64},
    "mamba2": {
        "num_heads": 4,
        "head_dim": 16,
        "n_groups": 2,
        "state_size": 8,
        "chunk_size": 8,
        "num_attention_heads": None,
        "num_key_value_heads": None,
        "max_position_embeddings": None,
        "intermediate_size": None,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "mamba_d_state": 8,
        "mamba_ngroups": 2,
        "n_mamba_heads": 4,
        "mamba_expand": 2,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "use_shared_attention_adapter": False,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "falcon_mamba": {
        "state_size": 8,
        "time_step_rank": 4,
        "intermediate_size": 64,
        "num_attention_heads": None,
        "num_key_value_heads": None,
    },
    "minimax": {
        **_HEAD_DIM,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
}
"""Families beside FAMILIES, for the tests of what runs fused; transformers may be too old for some."""
ATTENTION_FAMILIES = [name for name in FAMILIES if name not in {"mixtral", "qwen3_moe", "mamba", "lfm2", "qwen3_next"}]
"""Dense models whose tokens mix through attention alone."""
MOE_FAMILIES = ["mixtral", "qwen3_moe"]
"""Attention models with a mixture of experts."""
RECURRENT_FAMILIES = ["mamba", "lfm2", "qwen3_next"]
"""Models in which a state, a convolution or linear attention carries tokens forward."""


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a random model of `family` (of FAMILIES or MORE_FAMILIES) on the CPU, in evaluation mode.

    Matrices have a standard deviation of 1.5 / sqrt(inputs), about 0.2; norm weights are spread around their neutral
    value and biases around 0. The same seed gives the same model. `overrides` are fields of the configuration.
    """
    fields = {
        key: value
        for key, value in {**_COMMON, **(FAMILIES | MORE_FAMILIES)[family], **overrides}.items()
        if value is not None
    }
    if family == "phi3":
        fields.setdefault("sliding_window", None)
    config = CONFIG_MAPPING[family](**fields)
    generator = torch.Generator().manual_seed(seed)
    forms = {}
    if hasattr(config, "num_experts_per_tok") or hasattr(config, "moe_k"):
        forms["experts_implementation"] = "eager"  # float64 too
    if getattr(config, "attn_logit_softcapping", None):
        forms["attn_implementation"] = "eager"  # PyTorch's leaves the soft cap out without a word under 5.17
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **forms)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith(("A_log", "dt_bias", "dt_proj.bias", ".D")):
                continue
            if weight.ndim >= 2:
                weight.copy_(noise * (1.5 / weight.shape[-1] ** 0.5))
            else:
                weight.add_(noise * 0.1)
    return model.to(dtype).eval()


_TEXT = [
    "the wishbone has one stem and two branches and one side wins",
    "a prompt, a chosen answer and a rejected answer make a pair",
    "What is the capital of France? The capital of France is Paris.",
    "Count: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def loaded_in_fp8(model: PreTrainedModel) -> PreTrainedModel:
    """The model as transformers loads it in FP8, by way of a directory, on the same device."""
    from wishbone.model.fp8 import FP8Config

    with TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return AutoModelForCausalLM.from_pretrained(
            directory, dtype=model.dtype, quantization_config=FP8Config(), device_map={"": model.device}
        )


def tiny_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 320 tokens that encodes any text, with a chat template or without.

    Ids 0, 1, 2 are <|im_start|>, <|im_end|> (the end of sequence) and <|pad|>. It has more tokens than VOCABULARY; for
    a model that goes with it: `tiny_model(family, vocab_size=len(tokenizer))`.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        model_max_length=_COMMON["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@cache
def _trained_tokenizer() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXT, trainer)
    return backend.to_str()


def tiny_pairs(n: int, vocab: int = VOCABULARY, seed: int = 0) -> list[tuple[list[int], list[int], list[int]]]:
    """Return `n` pairs (prompt_ids, chosen_ids, rejected_ids) of random lengths, 1 to 12 tokens each; ids from 3 on."""
    rng = random.Random(seed)

    def ids() -> list[int]:
        return [rng.randrange(3, vocab) for _ in range(rng.randint(1, 12))]

    return [(ids(), ids(), ids()) for _ in range(n)]


def write_tiny_run(folder: Path, config: str, pairs: int) -> None:
    """Write what `wishbone train tiny.yaml` needs: model and tokenizer in `model`, `pairs.jsonl`, `tiny.yaml`."""
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(pairs)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(config)
