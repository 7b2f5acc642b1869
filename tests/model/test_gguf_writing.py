"""A GGUF file that is written here holds the model: read back by transformers, and by a reader of the bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from wishbone.errors import RequestError
from wishbone.model import gguf_writing
from wishbone.model.agreement import real_sequences, sequence_logps
from wishbone.model.gguf_architecture import TensorNames, rope_factors
from wishbone.model.gguf_check import Agreement, check_gguf
from wishbone.model.gguf_header import read_header
from wishbone.model.gguf_tokenizer import gguf_tokenizer
from wishbone.model.gguf_vocabulary import vocabulary
from wishbone.model.gguf_writing import obstacle, write_gguf

OLDER = transformers.__version__.startswith("5.17.")
WIDE = {"head_dim": 256, "query_pre_attn_scalar": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma2": WIDE,
    "gemma3_text": {**WIDE, "num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    "phi3": {},
}
TEXTS = ("List:\n\n1. two  3", "Grüße 中 42 and 12345", "it's   a 10\n", "I'LL go", "<|im_start|>user\nHi<|im_end|>\n")


def written(tmp_path: Path, family: str, kind: str, **settings: Any) -> tuple[Path, Path, Agreement]:
    """A tiny model with vectors that are not all ones, its GGUF file, and how they agree."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer), **settings).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    directory, file = tmp_path / "model", tmp_path / "model.gguf"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_gguf(directory, tokenizer, file, kind, "tiny")
    sequences = real_sequences(tokenizer)
    return directory, file, check_gguf(file, kind, directory, tokenizer, sequences, sequence_logps(model, sequences))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_read_back_as_it_was(tmp_path: Path, family: str):
    if family == "gemma2" and OLDER:
        pytest.skip("transformers 5.17 runs Gemma 2 without its soft capping")
    _, file, agreement = written(tmp_path, family, "f32", **FAMILIES[family])
    assert agreement.largest < 1e-3 and agreement.holds
    assert read_header(file).values["general.architecture"] == gguf_name(family)


def gguf_name(family: str) -> str:
    return {"mistral": "llama", "gemma3_text": "gemma3"}.get(family, family)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_rounding_explains_what_a_kind_loses(tmp_path: Path, kind: str):
    directory, file, agreement = written(tmp_path, "llama", kind)
    assert agreement.mean > 0 and agreement.holds
    exact = load_file(directory / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].numpy()
    (stored,) = [t for t in GGUFReader(file).tensors if t.name == "blk.1.ffn_down.weight"]
    error = np.abs(dequantize(stored.data, stored.tensor_type) - exact)
    blocks = np.abs(exact).reshape(-1, 32).max(1).repeat(32).reshape(exact.shape)
    step = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 0.57 / 127}[kind]
    assert (error <= step * (blocks if kind == "q8_0" else np.abs(exact)) + 1e-4 * blocks).all()


@pytest.mark.parametrize("mistake", ["order", "values", "tokens"])
def test_a_mistake_in_writing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str):
    if mistake == "order":  # rows of query and key stay as transformers has them
        monkeypatch.setattr(TensorNames, "form", lambda self, name, tensor: tensor)
    elif mistake == "values":
        plain = TensorNames.form
        scaled = lambda self, name, tensor: plain(self, name, tensor) * (1.1 if "up_proj" in name else 1)  # noqa: E731
        monkeypatch.setattr(TensorNames, "form", scaled)
    else:
        monkeypatch.setattr(gguf_writing, "vocabulary", swapped)
    with pytest.raises(RequestError, match="other tokens" if mistake == "tokens" else "read back with an error of"):
        written(tmp_path, "llama", "q8_0")


def swapped(tokenizer: PreTrainedTokenizerBase, rows: int) -> Any:
    words = vocabulary(tokenizer, rows)
    a, b = tokenizer.convert_tokens_to_ids(["h", "e"])
    words.tokens[a], words.tokens[b] = words.tokens[b], words.tokens[a]
    return words


def test_frequencies_of_llama_3_are_divided_as_transformers_does(tmp_path: Path):
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    settings: dict[str, Any] = {"rope_parameters": scaling, "head_dim": 128, "max_position_embeddings": 131072}
    config = tiny_model("llama", **settings).config
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    (factors,) = rope_factors(config).values()
    unscaled = 1 / 500000.0 ** (np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(unscaled / factors, expected.numpy(), rtol=1e-5)
    _, file, agreement = written(tmp_path, "llama", "f32", **settings)
    assert agreement.holds
    assert "rope_freqs.weight" in {tensor.name for tensor in read_header(file).tensors}


def trained(model: models.BPE, cut: Any, **settings: Any) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = cut
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False, **settings
    )
    backend.train_from_iterator([*TEXTS, Path(__file__).read_text(encoding="utf-8")] * 3, trainer)
    return backend


def byte_level(pattern: str, *, ignore_merges: bool = False) -> PreTrainedTokenizerBase:
    steps = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = trained(
        models.BPE(ignore_merges=ignore_merges), pre_tokenizers.Sequence(steps), initial_alphabet=alphabet
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def sentencepiece(*, space: bool) -> PreTrainedTokenizerBase:
    """As Llama 2 and Mistral have it (a space before text), or as Gemma (none)."""
    learning = trained(models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(prepend_scheme="never", split=True))
    content = json.loads(learning.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [tuple(merge) for merge in content["merges"]]
    characters = sorted(token for token in content["vocab"] if len(token) == 1)
    made = list(dict.fromkeys("".join(merge) for merge in merges))
    vocab = {token: number for number, token in enumerate([*tokens, *made, *characters])}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")]
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\N{LOWER ONE EIGHTH BLOCK}"), *steps] if space else steps
    )
    backend.add_special_tokens(tokens[:3])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TOKENIZERS = {
    "llama-bpe": lambda: byte_level(LLAMA_3, ignore_merges=True),
    "dbrx": lambda: byte_level(LLAMA_3),
    "qwen2": lambda: byte_level(LLAMA_3.replace("{1,3}", "")),
    "default": lambda: sentencepiece(space=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("cut", TOKENIZERS)
def test_tokenizers_are_read_back(tmp_path: Path, cut: str):
    if OLDER and cut in ("llama-bpe", "dbrx", "qwen2"):
        pytest.skip("transformers 5.17 rebuilds this tokenizer with GPT-2's cut, which reading refuses")
    tokenizer = TOKENIZERS[cut]()
    directory, file = tmp_path / "model", tmp_path / "model.gguf"
    tiny_model("llama", vocab_size=len(tokenizer) + 5).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    assert vocabulary(tokenizer, len(tokenizer) + 5).cut == cut
    write_gguf(directory, tokenizer, file, "f16", "tiny")
    rebuilt = gguf_tokenizer(file, read_header(file).values)
    for text in TEXTS:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert list(rebuilt(text, add_special_tokens=False)["input_ids"]) == ids, text


def test_what_cannot_be_written_is_said():
    tokenizer = tiny_tokenizer()
    config = tiny_model("gpt_neox", vocab_size=len(tokenizer)).config
    assert "'gpt_neox' are not known here" in str(obstacle(config, tokenizer))
    gemma = tiny_model("gemma2", vocab_size=len(tokenizer)).config
    gemma.query_pre_attn_scalar = 5
    assert "root of 5" in str(obstacle(gemma, tokenizer))
    llama = tiny_model("llama", vocab_size=len(tokenizer)).config
    assert obstacle(llama, tokenizer) is None
    llama.vocab_size = 800
    assert "how its tokenizer cuts text is not known here" in str(obstacle(llama, byte_level(r"\w+|\W")))
    llama.vocab_size = 10
    assert "its embedding 10 rows" in str(obstacle(llama, tokenizer))


def test_a_changed_setting_is_seen(tmp_path: Path):
    directory, file, _ = written(tmp_path, "llama", "f32")
    config = AutoConfig.from_pretrained(directory)
    config.max_position_embeddings *= 2
    config.save_pretrained(directory)
    tokenizer = tiny_tokenizer()
    sequences = real_sequences(tokenizer)
    with pytest.raises(RequestError, match="another max_position_embeddings"):
        check_gguf(file, "f32", directory, tokenizer, sequences, torch.zeros(1))
