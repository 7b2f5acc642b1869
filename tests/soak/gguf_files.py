"""GGUF files of a tiny model with damaged headers, values and weights, converted and used as a run would."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from soak.damage import damaged_bytes
from soak.trials import Target

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_PACKED = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
ALIGNMENT = 32


@dataclass
class Header:
    """What a GGUF file says of itself, each number free to be a lie.

    Attributes:
        values: key, type, value; an array's value is (type of its items, items, length that it claims or None).
        tensors: name, dimensions, type, offset, and how many dimensions it claims, or None.
        magic, version, tensor_count, value_count: the first numbers; counts of None are true.
    """

    values: list[tuple[str, int, Any]]
    tensors: list[tuple[str, list[int], int, int, int | None]]
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    value_count: int | None = None
    weights: bytes = field(default=b"", repr=False)

    def written(self) -> bytes:
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.values) if self.value_count is None else self.value_count,
        )
        parts = [self.magic, struct.pack("<IQQ", self.version, *counts)]
        for key, kind, value in self.values:
            parts += [_text(key), struct.pack("<I", kind), _value(kind, value)]
        for name, dims, kind, offset, claimed in self.tensors:
            parts += [_text(name), struct.pack("<I", len(dims) if claimed is None else claimed)]
            parts += [struct.pack("<Q", dim % 2**64) for dim in dims]
            parts.append(struct.pack("<IQ", kind % 2**32, offset % 2**64))
        header = b"".join(parts)
        return header + bytes(-len(header) % ALIGNMENT) + self.weights


def _text(text: str | bytes) -> bytes:
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(content)) + content


def _value(kind: int, value: Any) -> bytes:
    """The bytes of a value, whatever became of it: one that its type cannot hold is written as a text."""
    heads = b""
    while kind == ARRAY and isinstance(value, tuple):
        inner, items, claimed = value
        heads += struct.pack("<IQ", inner % 2**32, (len(items) if claimed is None else claimed) % 2**64)
        if inner != ARRAY or len(items) != 1:
            return heads + b"".join(_value(inner, item) for item in items)
        kind, value = inner, items[0]  # thousands of arrays in each other, without recursion
    if isinstance(value, bytes):
        return heads + (_text(value) if kind == STRING else value)
    try:
        return heads + struct.pack(f"<{_PACKED[kind]}", value)
    except (KeyError, struct.error, OverflowError):
        return heads + _text(str(value))


@cache
def sound() -> Header:
    """The header and weights of a Llama of two layers with a byte-level tokenizer."""
    from tiny import tiny_model, tiny_tokenizer

    tokenizer, model = tiny_tokenizer(), tiny_model("llama", vocab_size=320)
    content, config = json.loads(tokenizer.backend_tokenizer.to_str())["model"], model.config
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    values: list[tuple[str, int, Any]] = [
        ("general.architecture", STRING, "llama"),
        ("llama.context_length", U32, config.max_position_embeddings),
        ("llama.embedding_length", U32, config.hidden_size),
        ("llama.block_count", U32, config.num_hidden_layers),
        ("llama.feed_forward_length", U32, config.intermediate_size),
        ("llama.attention.head_count", U32, config.num_attention_heads),
        ("llama.attention.head_count_kv", U32, config.num_key_value_heads),
        ("llama.attention.layer_norm_rms_epsilon", F32, config.rms_norm_eps),
        ("llama.rope.freq_base", F32, 10000.0),
        ("llama.rope.dimension_count", U32, config.head_dim),
        ("llama.vocab_size", U32, config.vocab_size),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens, None)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [3 if i < 3 else 1 for i in range(len(tokens))], None)),
        ("tokenizer.ggml.merges", ARRAY, (STRING, [" ".join(merge) for merge in content["merges"]], None)),
        ("tokenizer.ggml.bos_token_id", U32, 0),
        ("tokenizer.ggml.eos_token_id", U32, 1),
        ("tokenizer.ggml.padding_token_id", U32, 2),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("tokenizer.chat_template", STRING, str(tokenizer.chat_template)),
    ]
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
             "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    tensors, weights = [], b""
    for name, weight in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem not in outer:
            _, _, layer, rest = stem.split(".", 3)
            outer[stem] = f"blk.{layer}.{names[rest]}"
        tensors.append((f"{outer[stem]}.weight", list(weight.shape)[::-1], 0, len(weights), None))
        weights += weight.numpy().tobytes()
        weights += bytes(-len(weights) % ALIGNMENT)
    return Header(values, tensors, weights=weights)


_NUMBERS = (0, 1, 2, 3, 7, 31, 64, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'x' * 10**11 }}",
    "{{ ('x' * 10**8) * 10 }}",
    "{{ 9**9**9**9 }}",
    "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{{ messages[0].__class__.__mro__ }}", "{{ raise_exception('no') }}", "{% for %}", "{{", "{{ 1 / 0 }}",
    "{{ messages[99].content }}", "{{ ''.join(messages) }}", "{% include 'x' %}", "{{ '%99999999999d' | format(1) }}",
    "{{ messages | tojson(indent=10**9) }}", "", "no messages at all", "{{ bos_token + 1 }}", "{{ x.y.z }}",
    "{% for i in range(10**9) %}{% endfor %}", "{{ 'x' | center(10**10) }}", "{{ lipsum(n=10**7) }}",
    "{{ cycler }}", "{{ '(' * 5000 }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ " + "[" * 200 + " }}",
    "{% if 1 %}" * 500 + "{% endif %}" * 500, "\ud800",
)  # fmt: skip
_TEXTS = ("", "\0", "llama", "gpt2", "qwen2", "newlm", "mistral", "gemma2", "bert", "t5", "mamba", "spm", "bpe",
"smollm",
          "x" * 5000, "\ud800", "../x", "default", "llama-bpe", "qwen2moe", "phi3", "falcon", "gptneox",
          "clip")  # fmt: skip


def _hostile(random: Random) -> tuple[int, Any]:
    """A type and a value of it."""
    kind = random.randrange(14)
    match kind:
        case 8:
            return kind, random.choice((*_TEXTS, b"\xff\xfe"))
        case 9:
            inner = random.choice((U8, U32, I32, F32, STRING, ARRAY, 13, 2**32 - 1))
            claimed = random.choice((None, None, *_NUMBERS))
            if inner == ARRAY:
                depth: Any = (U8, [], None)
                for _ in range(random.choice((1, 3, 3000))):
                    depth = (ARRAY, [depth], None)
                return kind, (ARRAY, [depth], claimed)
            sample = {STRING: ["a", ""], F32: [0.5]}.get(inner, [1, 0] if inner in _PACKED else [b"x"])
            return kind, (inner, sample * random.choice((0, 1, 200)), claimed)
        case 6 | 12:
            return kind, random.choice((0.0, -1.0, float("nan"), float("inf"), 1e-30, 1e30))
        case 7:
            return kind, random.random() < 0.5
        case 13:
            return random.choice((13, 255, 2**32 - 1)), b"abc"
    width = struct.calcsize(_PACKED[kind]) * 8
    number = random.choice(_NUMBERS) % 2**width
    signed = kind in (I8, I16, I32, I64)
    return kind, number - 2**width if signed and number >= 2 ** (width - 1) else number


def _other_value(header: Header, random: Random) -> None:
    place = random.randrange(len(header.values))
    key, kind, value = header.values[place]
    if kind in (U8, U16, U32, U64) and random.random() < 0.5:
        header.values[place] = (key, U64, random.choice(_NUMBERS))
    elif kind == ARRAY and value[1] and random.random() < 0.7:
        inner, items, _ = value
        items, claimed = list(items), random.choice((None, None, None, *_NUMBERS))
        spot = random.randrange(len(items))
        match random.randrange(5):
            case 0:
                del items[spot:]
            case 1:
                del items[spot]
            case 2 if inner == STRING:
                items[spot] = random.choice((*_TEXTS, items[spot - 1], "a b c", b"\xff"))
            case 2:
                items[spot] = random.choice((0, 2, 3, 4, 5, 6, 99, -1, 2**31 - 1))
            case 3:
                items += items[: random.choice((1, 10))]
            case _:
                header.values[place] = (key, kind, (random.choice((U8, U32, I64, F64, STRING, BOOL)), [], claimed))
                return
        header.values[place] = (key, kind, (inner, items, claimed))
    elif key == "tokenizer.chat_template" and random.random() < 0.8:
        header.values[place] = (key, kind, random.choice(TEMPLATES))
    elif kind == STRING and random.random() < 0.7:
        header.values[place] = (key, kind, random.choice(_TEXTS))
    else:
        header.values[place] = (key, *_hostile(random))


def _template(header: Header, random: Random) -> None:
    header.values[-1] = ("tokenizer.chat_template", STRING, random.choice(TEMPLATES))


def _more_values(header: Header, random: Random) -> None:
    key = random.choice(("general.alignment", "split.count", "x", "", "general.architecture", "tokenizer.ggml.scores",
                         "tokenizer.ggml.unknown_token_id", "llama.expert_count", "llama.rope.scaling.type",
                         "llama.attention.key_length", "tokenizer.ggml.add_space_prefix", "general.name"))  # fmt: skip
    header.values.insert(random.randrange(len(header.values) + 1), (key, *_hostile(random)))


def _fewer_values(header: Header, random: Random) -> None:
    del header.values[random.randrange(len(header.values))]


def _counts(header: Header, random: Random) -> None:
    match random.randrange(4):
        case 0:
            header.tensor_count = random.choice(_NUMBERS)
        case 1:
            header.value_count = random.choice(_NUMBERS)
        case 2:
            header.version = random.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1))
        case _:
            header.magic = random.choice((b"GGML", b"FUGG", b"\0\0\0\0"))


def _other_tensor(header: Header, random: Random) -> None:
    place = random.randrange(len(header.tensors))
    name, dims, kind, offset, claimed = header.tensors[place]
    match random.randrange(7):
        case 0:
            name = random.choice(
                ("", "x", header.tensors[place - 1][0], "blk.999999.attn_q.weight", "blk.x.y", "\ud800")
            )
        case 1:
            dims = [*dims]
            dims[random.randrange(len(dims))] = random.choice(_NUMBERS)
        case 2:
            dims = random.choice(([], [*dims, 1], dims[::-1], [1] * 5, [2**32, 2**32], [0], [2**63, 2]))
        case 3:
            kind = random.choice((*range(40), 2**32 - 1))
        case 4:
            offset = random.choice((*_NUMBERS, 1, offset + 4, len(header.weights)))
        case 5:
            claimed = random.choice(_NUMBERS) % 2**32
        case _:
            del header.tensors[place]
            return
    header.tensors[place] = (name, dims, kind, offset, claimed)


_CHANGES: tuple[Callable[[Header, Random], None], ...] = (
    _other_value, _other_value, _other_value, _template, _more_values, _fewer_values, _counts, _other_tensor,
    _other_tensor,
)  # fmt: skip


def write_gguf(random: Random, directory: Path) -> Path:
    """A file with one or two lies in its header, or damaged bytes."""
    header = replace(sound(), values=list(sound().values), tensors=list(sound().tensors))
    if random.random() < 0.75:
        for _ in range(random.choice((1, 1, 1, 2))):
            random.choice(_CHANGES)(header, random)
        content = header.written()
    else:
        content = header.written()
        content = damaged_bytes(content, random, head=len(content) - len(header.weights))
    path = directory / random.choice(("m.gguf", "m.gguf", "M 1.GGUF", "n" * 240 + ".gguf", "\N{SNOWMAN}.gguf"))
    path.write_bytes(content)
    return path


def read_gguf(path: Path) -> None:
    """Load model and tokenizer of the file, and tokenize pairs with its chat template."""
    import shutil

    from datasets import Dataset

    from wishbone.cache import cache_root
    from wishbone.data.tokenize import tokenize_pairs
    from wishbone.model.load import load_model

    try:
        _, tokenizer = load_model(str(path), device="cpu")
        row = {"prompt": [{"role": "user", "content": "Hi"}]}
        sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
        tokenize_pairs(Dataset.from_list([row | sides]), tokenizer)
        if tokenizer.eos_token is not None:
            tokenize_pairs(Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]), tokenizer)
    finally:
        shutil.rmtree(cache_root(), ignore_errors=True)


TARGETS = [Target("gguf", write_gguf, read_gguf, seconds=30.0, memory=2**30)]
