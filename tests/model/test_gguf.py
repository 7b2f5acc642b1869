"""A GGUF file gives the model and the token ids that were put into it, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from wishbone.errors import RequestError
from wishbone.model.gguf import _unmarked, gguf_directory, smallest_exact_dtype
from wishbone.model.load import load_model

IDS = torch.arange(3, 23).unsqueeze(0)
TEXTS = ["List:\n\n1. two  3", "Grüße 中 42", "<|im_start|>user\nHi<|im_end|>\n", "it's   a 10\n"]
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WISHBONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if name == "lm_head.weight":
        return "output.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of query and key rows in a GGUF of this family: rotary pairs (i, i + half) become neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write(
    path: Path,
    model: PreTrainedModel,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    pre: str = "gpt-2",
    add_bos: bool = False,
    architecture: str = "llama",
    parts: int = 1,
) -> Path:
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = tiny_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in content["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template(str(tokenizer.chat_template))
    if parts > 1:
        writer.add_uint16("split.count", parts)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = _interleave(array, heads)
        if array.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(_gguf_name(name), array)
        else:
            writer.add_tensor(_gguf_name(name), gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _llama() -> PreTrainedModel:
    return tiny_model("llama", vocab_size=320)


def _refusal(path: Path) -> str:
    with pytest.raises(RequestError) as refusal:
        load_model(str(path))
    (problem,) = refusal.value.problems
    assert "\n" not in problem
    return problem


def test_the_same_model_comes_back(tmp_path: Path) -> None:
    model, tokenizer = load_model(str(_write(tmp_path / "tiny.gguf", _llama())), device="cpu")
    for (name, weight), (other, wanted) in zip(model.state_dict().items(), _llama().state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(weight, wanted), name
    assert torch.allclose(model(IDS).logits, _llama()(IDS).logits, atol=1e-5)
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.model_max_length == 256
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == tiny_tokenizer().apply_chat_template(
        chat, tokenize=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F16", torch.float16), ("BF16", torch.bfloat16), ("Q8_0", torch.float32), ("Q4_1", torch.float32)],
)
def test_the_smallest_dtype_without_loss_is_kept(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    source = _llama()
    for weight in source.parameters():
        if weight.ndim == 1:
            weight.data = weight.data.bfloat16().half().float()  # norms that both 16-bit types hold exactly
    path = _write(tmp_path / "tiny.gguf", source, gguf.GGMLQuantizationType[kind])
    model, _ = load_model(str(path), device="cpu")
    stored = gguf_directory(path) / "model.safetensors"
    numbers = sum(weight.numel() for weight in source.parameters())
    assert 0 <= stored.stat().st_size - numbers * dtype.itemsize < 8192
    expected = source.get_submodule("model.layers.1.mlp.down_proj").weight.detach().numpy()
    if kind in ("F16", "BF16"):
        expected = torch.from_numpy(expected).to(dtype).float().numpy()
    else:
        # blocks of 32: w = d q (+ m), d and m in float16
        blocks = expected.reshape(-1, 32)
        if kind == "Q8_0":
            step = np.abs(blocks).max(axis=1, keepdims=True) / 127
            expected = (np.float16(step) * np.round(blocks / step)).reshape(expected.shape)
        else:
            low = blocks.min(axis=1, keepdims=True)
            step = (blocks.max(axis=1, keepdims=True) - low) / 15
            levels = np.clip(np.floor((blocks - low) / step + 0.5), 0, 15)
            expected = (np.float16(step) * levels + np.float16(low).astype(np.float32)).reshape(expected.shape)
    loaded = model.get_submodule("model.layers.1.mlp.down_proj").weight.detach().numpy()
    assert np.allclose(loaded, expected, rtol=1e-6, atol=1e-6)


def test_exactness_is_judged_by_every_weight() -> None:
    assert smallest_exact_dtype([torch.tensor([1.0, 2.0**100]), torch.tensor([0.5])]) == torch.bfloat16
    assert smallest_exact_dtype([torch.tensor([1.0]), torch.tensor([1 + 2**-10])]) == torch.float16
    assert smallest_exact_dtype([torch.tensor([2.0**100]), torch.tensor([1 + 2**-10])]) == torch.float32


def test_text_is_cut_the_way_the_file_says(tmp_path: Path) -> None:
    plain = load_model(str(_write(tmp_path / "plain.gguf", _llama(), pre="gpt-2")))[1]
    digits = load_model(str(_write(tmp_path / "digits.gguf", _llama(), pre="smollm")))[1]
    for text in TEXTS:
        assert plain(text).input_ids == tiny_tokenizer()(text).input_ids
        assert digits.decode(digits(text).input_ids) == text
    assert digits.backend_tokenizer.pre_tokenizer.pre_tokenize_str("\n\n12  3") == [
        ("ĊĊ", (0, 2)),
        ("1", (2, 3)),
        ("2", (3, 4)),
        ("ĠĠ", (4, 6)),
        ("3", (6, 7)),
    ]


def test_a_start_token_is_added_only_when_the_file_says_so(tmp_path: Path) -> None:
    without = load_model(str(_write(tmp_path / "a.gguf", _llama(), add_bos=False)))[1]
    with_it = load_model(str(_write(tmp_path / "b.gguf", _llama(), add_bos=True)))[1]
    assert with_it("Hi").input_ids == [0, *without("Hi").input_ids]
    assert without("Hi", add_special_tokens=False).input_ids == without("Hi").input_ids


def test_a_file_is_converted_once_and_known_by_its_content(tmp_path: Path) -> None:
    path = _write(tmp_path / "tiny.gguf", _llama())
    first = gguf_directory(path)
    made = (first / "config.json").stat().st_mtime_ns
    moved = path.rename(tmp_path / "sub.gguf")
    assert gguf_directory(moved.rename(tmp_path / "tiny.gguf")) == first
    assert (first / "config.json").stat().st_mtime_ns == made
    other = gguf_directory(_write(path, tiny_model("llama", vocab_size=320, seed=1)))
    assert other != first


def test_an_unknown_way_to_cut_text_is_refused(tmp_path: Path, cache: Path) -> None:
    assert "'new-cut'" in _refusal(_write(tmp_path / "tiny.gguf", _llama(), pre="new-cut"))
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "tiny.gguf", _llama())
    content = path.read_bytes()
    for cut in (0, 3, 40, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:cut])
        assert "not a whole GGUF file" in _refusal(path), cut
    path.write_bytes(b"not a gguf at all, but long enough to be read as one")
    assert "not a whole GGUF file" in _refusal(path)


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    assert "one of 3 parts" in _refusal(_write(tmp_path / "tiny-00001-of-00003.gguf", _llama(), parts=3))


def test_an_architecture_that_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    assert "cannot be converted" in _refusal(_write(tmp_path / "tiny.gguf", _llama(), architecture="newlm"))


def test_a_file_without_some_weights_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=320)
    config = model.config
    config.num_hidden_layers = 3
    assert "no fitting weights" in _refusal(_write(tmp_path / "tiny.gguf", model))


def test_weights_of_another_shape_than_the_metadata_describe_are_refused(tmp_path: Path) -> None:
    """Some versions of transformers load them without a word."""
    model = tiny_model("llama", vocab_size=320)
    model.config.intermediate_size += 1
    with pytest.raises(RequestError, match=r"m\.gguf has no fitting weights for model\.layers\.0\.mlp\."):
        _unmarked(model, torch.float32, Path("m.gguf"))
