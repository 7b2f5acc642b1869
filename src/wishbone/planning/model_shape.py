"""The shape of a language model, from its config.json alone: what memory and time depend on, and nothing else.

Model families spell the same sizes alike; the few exceptions stand in one table here. What a config.json leaves out is
what transformers takes as its default: as many key heads as heads, and a head dimension of hidden_size / heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wishbone.errors import RequestError
from wishbone.planning.mixers import (
    KEPT_OF_MIXER,
    NO_SCAN,
    RECURRENT_TYPES,
    Linear,
    Scan,
    every_of,
    mixer_of,
    recurrent_layers,
    scan_of,
    single_kinds,
)

OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "vocab_size": ("padded_vocab_size",),
    "mamba_n_heads": ("mamba_num_heads",),
    "mamba_d_head": ("mamba_head_dim",),
    "mamba_n_groups": ("n_groups",),
    "mamba_d_state": ("ssm_state_size",),
    "shared_expert_intermediate_size": ("moe_shared_expert_intermediate_size",),
}
"""Other names that some families give a size."""

TIED = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "cohere", "cohere2", "smollm3"})
"""Families whose head shares the embedding's weights unless the file says otherwise."""

FOUR_NORMS = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
"""Families with a norm both before and after attention and MLP."""

HEAD_NORMS = frozenset({"qwen3", "qwen3_moe", "gemma3", "gemma3_text", "olmo2", "olmo3", "olmoe"})
"""Families that normalize queries and keys."""

QUERY_KEY_VALUE_BIAS = frozenset({"qwen2", "qwen2_moe"})

GATED_QUERIES = frozenset({"qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"})
"""Families whose projection to queries also gives a gate of their size."""
ONLY_MAMBA = frozenset({"mamba", "falcon_mamba"})
"""Families of Mamba layers alone, without attention and MLPs."""
ONE_PART = frozenset({"nemotron_h"})
"""Families whose layers each do one thing, behind one norm, and whose MLPs and experts have no gate."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
FUSED = frozenset({"phi3"})
"""Families that keep query, key and value in one matrix, and gate and up in one."""
LINEAR_EXPERTS = frozenset(
    {"afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe",
     "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash", "mellum", "minimax",
     "minimax_m2", "mixtral", "olmoe", "qwen3_moe", "qwen3_next", "sarvam_mla", "solar_open"}
)  # fmt: skip
"""Families whose experts PEFT counts among all linear layers, because they were layers before transformers 5."""
INSTEAD = "give the model's own config.json, or name a model that is known"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        model_type: the family.
        hidden: elements of a token between layers.
        inner: elements of a token within an MLP; 0 where every MLP is a mixture of experts.
        layers, heads, key_heads, head_size: of attention.
        vocabulary: rows of the embedding.
        tied: whether the output head is the embedding.
        norms: norms a layer, without those of single heads.
        head_norms: whether queries and keys are normalized.
        biases: parameters of the linear layers' biases, a layer.
        experts, experts_used, expert_inner: of a mixture of experts; 0 without.
        expert_layers: layers with experts.
        dense_inner: elements of a token within the MLP of the other layers of a mixture.
        shared_inner: elements of a token within the MLP that runs beside the experts of a layer.
        recurrent: layers that mix tokens by a recurrence or a short convolution and not by attention.
        mixer: their linear layers; the last one projects out.
        scan: what the kernels of their scan hold.
        gated_queries: whether the projection to queries also gives a gate of their size.
        mlp_alone: layers that are an MLP, or experts, and do not mix tokens.
        gated: whether MLPs and experts have a gate.
        positions: longest sequence that the position encoding was made for; 0 where the file does not say.
    """

    model_type: str
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    norms: int = 2
    head_norms: bool = False
    biases: int = 0
    experts: int = 0
    experts_used: int = 0
    expert_inner: int = 0
    positions: int = 0
    expert_layers: int = 0
    dense_inner: int = 0
    shared_inner: int = 0
    recurrent: int = 0
    mixer: tuple[Linear, ...] = ()
    scan: Scan = NO_SCAN
    gated_queries: bool = False
    mlp_alone: int = 0
    gated: bool = True

    @property
    def query(self) -> int:
        """Size of all query heads together."""
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        """Size of all key heads together."""
        return self.key_heads * self.head_size

    @property
    def attending(self) -> int:
        """How many layers attend."""
        return self.layers - self.recurrent - self.mlp_alone

    @property
    def mixed(self) -> int:
        """Elements a token that a recurrent layer keeps between its two norms."""
        return KEPT_OF_MIXER * sum(linear.outputs for linear in self.mixer[:-1]) + self.mixer[-1].inputs

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Linear layers of the model: those that get adapters and quantized weights."""
        query = 2 * self.query if self.gated_queries else self.query
        attending = self.attending
        if self.model_type in FUSED:
            attention = [Linear("qkv_proj", self.hidden, query + 2 * self.key, attending)]
        else:
            attention = [
                Linear("q_proj", self.hidden, query, attending),
                Linear("k_proj", self.hidden, self.key, attending),
                Linear("v_proj", self.hidden, self.key, attending),
            ]
        attention.append(Linear("o_proj", self.query, self.hidden, attending))
        mixers = (Linear(one.name, one.inputs, one.outputs, self.recurrent) for one in self.mixer)
        mlps = (
            *self._mlp(self.inner, self.mlp_alone or self.layers),
            *self._mlp(self.dense_inner, (self.mlp_alone or self.layers) - self.expert_layers),
            *self._mlp(self.shared_inner, self.expert_layers),
        )
        return tuple(one for one in (*attention, *mixers, *mlps) if one.count)

    def _mlp(self, inner: int, count: int) -> tuple[Linear, ...]:
        """The linear layers of so many MLPs; none without a size."""
        if not inner:
            return ()
        down = Linear("down_proj", inner, self.hidden, count)
        if self.model_type in FUSED:
            return (Linear("gate_up_proj", self.hidden, 2 * inner, count), down)
        into = ("gate_proj", "up_proj") if self.gated else ("up_proj",)
        return (*(Linear(name, self.hidden, inner, count) for name in into), down)

    @property
    def matrices(self) -> int:
        """Matrices of an MLP or of an expert."""
        return 3 if self.gated else 2

    @property
    def linear_parameters(self) -> int:
        """Parameters of all linear layers, without biases."""
        return sum(linear.count * linear.inputs * linear.outputs for linear in self.linears)

    @property
    def expert_parameters(self) -> int:
        """Parameters of all experts, which are stacked matrices, and of their routers."""
        return self.expert_layers * self.experts * (self.matrices * self.hidden * self.expert_inner + self.hidden)

    @property
    def vector_parameters(self) -> int:
        """Parameters of norms and biases."""
        heads = 0
        if self.head_norms:
            heads = self.query + self.key if self.model_type.startswith("olmo") else 2 * self.head_size
        return self.layers * (self.norms * self.hidden + heads + self.biases) + self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding and, where it has its own, of the head."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.linear_parameters + self.expert_parameters + self.vector_parameters + self.embedding_parameters


def read_shape(config: Mapping[str, Any], name: str = "config.json") -> ModelShape:
    """Return the shape that a config.json describes; for a model with images, that of its language model.

    Args:
        config: the file's content.
        name: of the model, for errors.

    Raises:
        RequestError: naming all fields that are missing or are not sizes.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config = {"tie_word_embeddings": config.get("tie_word_embeddings"), **text}
    return _Fields(config, name).shape()


class _Fields:
    """Reads sizes and remembers what is wrong with them."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self._config, self._name = config, name
        self._missing: list[str] = []
        self._wrong: list[str] = []

    def shape(self) -> ModelShape:
        kind = str(self._config.get("model_type") or "unknown")
        single = single_kinds(self._config) if kind in ONE_PART else []
        experts = next((found for n in EXPERTS if (found := self._size(n, 0))), 0)
        experts = 0 if single and "moe" not in single else experts
        hidden, layers = self._size("hidden_size"), len(single) or self._size("num_hidden_layers")
        alone = kind in ONLY_MAMBA
        heads, vocabulary = self._size("num_attention_heads", 0 if alone else None), self._size("vocab_size")
        inner = self._size("intermediate_size", 0 if experts or alone else None)
        if kind == "lfm2" and self._config.get("block_auto_adjust_ff_dim", True):
            inner = -(-(2 * inner // 3) // 256) * 256
        shared = self._size("shared_intermediate_size", 0)
        if shared and not experts:
            inner = shared
        used = self._size("num_experts_per_tok") if experts else 0
        key_heads = self._size("num_key_value_heads", heads) or heads
        head_size = self._size("head_dim", 0) or (hidden // heads if heads else 0)
        recurrent = layers if alone else recurrent_layers(self._config, self._size, layers)
        if single:
            recurrent = sum(one in RECURRENT_TYPES for one in single)
        mixer = mixer_of(self._size, hidden, inner if alone else 0) if recurrent else ()
        expert_inner = self._size("moe_intermediate_size", inner) if experts else 0
        shared = shared or self._size("shared_expert_intermediate_size", 0)
        shared = shared or self._size("n_shared_experts", 0) * expert_inner
        dense_inner = self._size("intermediate_size_mlp", 0)  # Llama 4, whose experts and shared expert are of one size
        shared = inner if dense_inner else shared
        dense = self._size("first_k_dense_replace", 0) or self._size("num_dense_layers", 0)
        if self._missing or self._wrong:
            raise RequestError(self._problems())
        query, key = heads * head_size, key_heads * head_size
        biased = kind in QUERY_KEY_VALUE_BIAS or bool(self._config.get("attention_bias"))
        biases = query + 2 * key if biased else 0
        if self._config.get("attention_bias"):
            biases += hidden
        tied = self._config.get("tie_word_embeddings")
        return ModelShape(
            model_type=kind,
            hidden=hidden,
            inner=0 if experts or alone else inner,
            layers=layers,
            heads=heads,
            key_heads=key_heads,
            head_size=head_size,
            vocabulary=vocabulary,
            tied=kind in TIED if tied is None else bool(tied),
            norms=1 if alone or single else 4 if kind in FOUR_NORMS else 2,
            head_norms=kind in HEAD_NORMS or bool(self._config.get("use_qk_norm")),
            biases=biases,
            experts=experts,
            experts_used=used,
            expert_inner=expert_inner,
            positions=self._size("max_position_embeddings", 0),
            expert_layers=self._expert_layers(layers, min(dense, layers), single) if experts else 0,
            dense_inner=(dense_inner or inner) if experts else 0,
            shared_inner=shared if experts else 0,
            recurrent=recurrent,
            mixer=mixer,
            scan=scan_of(self._size) if recurrent else NO_SCAN,
            gated_queries=kind in GATED_QUERIES,
            mlp_alone=sum(one in ("mlp", "moe") for one in single),
            gated=kind not in ONE_PART,
        )

    def _expert_layers(self, layers: int, dense: int, single: list[Any]) -> int:
        """Return how many layers have experts."""
        if single:
            return single.count("moe")
        if step := self._size("interleave_moe_layer_step", 0):
            return every_of(layers, step, step - 1)
        if every := every_of(layers, self._size("expert_layer_period", 0), self._size("expert_layer_offset", 0)):
            return every
        return layers - dense

    def _size(self, name: str, default: int | None = None) -> int:
        """Return a size by its own name or by another; one that is missing or wrong is noted and counts as 0."""
        found = next((n for n in (name, *OTHER_NAMES.get(name, ())) if self._config.get(n) is not None), None)
        if found is None:
            if default is None:
                self._missing.append(name)
            return default or 0
        value = self._config[found]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (value == 0 and default is None):
            self._wrong.append(f"{found} is {value!r}")
            return 0
        return value

    def _problems(self) -> list[str]:
        problems = []
        if self._missing:
            problems.append(f"{self._name!r}: its config.json lacks {', '.join(self._missing)}; {INSTEAD}")
        if self._wrong:
            problems.append(f"{self._name!r}: {', '.join(self._wrong)}, and a size is a whole number; {INSTEAD}")
        return problems
