"""What is exported is what was trained: read back by others' readers, and refused where it is not."""

from __future__ import annotations

import json
import shlex
import stat
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from learned import Learned
from result.conftest import Command
from transformers import AutoModelForCausalLM, AutoTokenizer

from wishbone.model.agreement import real_sequences, sequence_logps
from wishbone.model.gguf_architecture import TensorNames
from wishbone.result.chat_format import chat_format
from wishbone.result.finished_run import finished_run
from wishbone.result.vllm import vllm_command


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_every_format_gives_the_log_probabilities_of_the_trained_model(
    kind: str, run: Path, learned: Learned, wishbone: Command, tmp_path: Path, request: pytest.FixtureRequest
):
    if kind == "full":
        request.getfixturevalue("full_run")
    out = tmp_path / "out"
    words = [
        "export",
        run,
        "--gguf",
        out / "t.gguf",
        "--merged",
        out / "merged",
        "--quantize",
        "f32",
        "--vllm",
        "--json",
    ]
    result = wishbone(*words)
    assert result.exit_code == 0, result.stderr
    merged, gguf, vllm = json.loads(result.stdout)
    sequences = real_sequences(learned.tokenizer)
    expected = sequence_logps(learned.merged, sequences)
    from_gguf = AutoModelForCausalLM.from_pretrained(out, gguf_file="t.gguf", dtype=torch.float32)
    assert (sequence_logps(from_gguf, sequences) - expected).abs().max() < 1e-3
    assert gguf["compared_on"] == "4 held-out pairs" and gguf["difference"]["largest"] < 1e-3
    from_merged = AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32)
    apart = (sequence_logps(from_merged, sequences) - expected).abs().mean()
    assert 0 < apart < 0.1 and merged["difference"]["mean"] <= merged["difference"]["allowed_mean"]
    assert vllm["command"] == f"vllm serve {shlex.quote(str(out / 'merged'))} --served-model-name run"
    assert not [entry.name for entry in out.iterdir() if entry.name.startswith(".")]


@pytest.mark.slow
def test_what_is_there_is_replaced_only_where_asked(run: Path, wishbone: Command, tmp_path: Path):
    file, directory = tmp_path / "a.gguf", tmp_path / "merged"
    file.write_text("mine")
    words = ("export", run, "--adapter-gguf", file, "--merged", directory)
    refused = wishbone(*words)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr and file.read_text() == "mine"
    assert wishbone(*words, "--overwrite").exit_code == 0
    assert file.read_bytes()[:4] == b"GGUF"
    (directory / "photo.png").write_text("mine")
    refused = wishbone(*words, "--overwrite")
    assert refused.exit_code == 2 and "photo.png" in refused.stderr and (directory / "photo.png").exists()


def test_an_adapter_as_gguf_adds_what_the_adapter_adds(run: Path, learned: Learned, wishbone: Command, tmp_path: Path):
    file = tmp_path / "a.gguf"
    result = wishbone("export", run, "--adapter-gguf", file)
    assert result.exit_code == 0, result.stderr
    reader = GGUFReader(file)
    stored = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    base = AutoModelForCausalLM.from_pretrained(learned.base.name)
    added = learned.merged.state_dict()["model.layers.1.self_attn.q_proj.weight"]
    added = added - base.state_dict()["model.layers.1.self_attn.q_proj.weight"]
    product = stored["blk.1.attn_q.weight.lora_b"] @ stored["blk.1.attn_q.weight.lora_a"]
    heads = base.config.num_attention_heads
    halves = product.reshape(heads, -1, 2, product.shape[1]).swapaxes(1, 2).reshape(product.shape)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    torch.testing.assert_close(halves * alpha / 4, added, rtol=1e-4, atol=1e-5)


def test_a_wrong_adapter_file_is_not_kept(
    run: Path, wishbone: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TensorNames, "form", lambda self, name, tensor: tensor * 1.5)
    result = wishbone("export", run, "--adapter-gguf", tmp_path / "out" / "a.gguf")
    assert result.exit_code == 2 and "nothing was kept" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ollama_gets_the_template_as_it_writes_conversations(run: Path, wishbone: Command, tmp_path: Path):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("system_prompt: null", "system_prompt: Be kind."))
    result = wishbone("export", run, "--ollama", tmp_path / "o", "--quantize", "f16")
    assert result.exit_code == 0, result.stderr
    lines = (tmp_path / "o" / "Modelfile").read_text()
    assert lines.startswith(
        'FROM ./model.gguf\nTEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>'
    )
    assert 'SYSTEM """Be kind."""\n' in lines and lines.endswith('PARAMETER stop "<|im_end|>"\n')
    assert (tmp_path / "o" / "model.gguf").is_file()


TEMPLATES = {
    "default system": "{% if messages[0]['role'] != 'system' %}<s>You are kind.\n{% endif %}{% for m in messages %}"
    "[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "system in the user's turn": "{{ '<s>' }}{% if messages[0]['role'] == 'system' %}"
    "{% set s = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {% if loop.first and s is defined %}"
    "{{ s }}\n\n{% endif %}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}",
    "no system": "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
}
UNEXPRESSED = {
    "counts turns": "{% for m in messages %}{{ loop.index }}{{ m['role'] }}{{ m['content'] }}{% endfor %}",
    "fails": "{{ raise_exception('no') }}",
    "loses text": "{% for m in messages %}{% if loop.last %}{{ m['content'] }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", [*TEMPLATES, *UNEXPRESSED])
def test_templates_of_fixed_texts_are_found_and_others_are_not(learned: Learned, name: str):
    tokenizer = AutoTokenizer.from_pretrained(learned.base.name)
    tokenizer.chat_template = (TEMPLATES | UNEXPRESSED)[name]
    found = chat_format(tokenizer)
    if name in UNEXPRESSED:
        assert found is None
        return
    assert found is not None
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}, {"role": "user", "content": "s"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert found.written(None, ["q", "r", "s"]) == whole
    assert (found.system is None) == (name == "no system")


def test_a_text_cannot_leave_its_quotes_in_a_modelfile(run: Path, wishbone: Command, tmp_path: Path):
    text = (run / "config.yaml").read_text()
    evil = 'Hi\\"\\"\\"\\nFROM /etc/passwd'
    (run / "config.yaml").write_text(text.replace("system_prompt: null", f'system_prompt: "{evil}"'))
    result = wishbone("export", run, "--ollama", tmp_path / "o")
    assert result.exit_code == 2 and "three double quotes" in result.stderr
    assert not (tmp_path / "o").exists()


def test_a_text_that_ollama_would_change_is_refused(run: Path, wishbone: Command, tmp_path: Path):
    """Its parser drops letters that are not printable, such as a zero-width space, and says nothing."""
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("system_prompt: null", 'system_prompt: "Be\\u200b brief."'))
    result = wishbone("export", run, "--ollama", tmp_path / "o")
    assert result.exit_code == 2 and "holds '\\u200b', which Ollama drops from a Modelfile" in result.stderr


def test_other_kinds_need_llama_cpp_and_say_so(
    run: Path, wishbone: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    result = wishbone("export", run, "--gguf", tmp_path / "t.gguf", "--quantize", "q4_k_m")
    assert result.exit_code == 2
    assert "q4_k_m needs llama.cpp's llama-quantize, which is not found" in result.stderr
    tool = tmp_path / "llama-quantize"
    tool.write_text("#!/bin/sh\nexit 3\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    failing = wishbone("export", run, "--gguf", tmp_path / "t.gguf", "--quantize", "q4_k_m")
    assert failing.exit_code == 2 and "llama-quantize failed with status 3" in failing.stderr
    assert not (tmp_path / "t.gguf").exists()


def test_wrong_requests_are_refused_before_the_model_is_loaded(run: Path, wishbone: Command, tmp_path: Path):
    for words, said in (
        ((), "nothing to write"),
        (("--gguf", tmp_path / "t.bin"), "end with .gguf"),
        (("--gguf", tmp_path / "t.gguf", "--quantize", "q9"), "--quantize 'q9' is not known"),
        (("--merged", run), "exists"),
    ):
        result = wishbone("export", run, *words)
        assert result.exit_code == 2 and said in result.stderr, (words, result.stderr)


def test_the_commands_for_vllm_name_a_model_that_is_there(run: Path, learned: Learned):
    text = (run / "config.yaml").read_text()

    def command(name: str) -> tuple[str, str | None]:
        (run / "config.yaml").write_text(text.replace(f"name: {learned.base.name}", f"name: {name}"))
        return vllm_command(finished_run(run), None)

    here = run / "adapter"
    assert command("Qwen/Qwen3-8B") == (
        f"vllm serve Qwen/Qwen3-8B --enable-lora --max-lora-rank 16 --lora-modules {shlex.quote(f'run={here}')}",
        None,
    )
    embedded, note = command("smollm2-135m-instruct")
    assert embedded.startswith("vllm serve HuggingFaceTB/SmolLM2-135M-Instruct ") and "4-bit copy" in str(note)
