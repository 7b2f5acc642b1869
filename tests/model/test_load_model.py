"""Loading from directories, GGUF files and a hub; and every refusal, before anything is trained on it."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from wishbone.errors import RequestError
from wishbone.model.device import choose_device, choose_dtype
from wishbone.model.load import load_model, load_tokenizer, resolve_model

IDS = torch.arange(3, 23).unsqueeze(0)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))


def _refusal(name: str | Path, **options: object) -> list[str]:
    with pytest.raises(RequestError) as refusal:
        load_model(str(name), **options)  # type: ignore[arg-type]
    assert all("\n" not in problem for problem in refusal.value.problems)
    return refusal.value.problems


def _edit_config(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


# ---- what loads


def test_a_directory_gives_its_model_and_tokenizer(saved: Path) -> None:
    model, tokenizer = load_model(str(saved), device="cpu")
    expected = tiny_model("llama", vocab_size=320)
    assert torch.equal(model(IDS).logits, expected(IDS).logits)
    assert not model.training
    assert model.dtype == torch.float32
    text = "Count: 1, 2, 3 <|im_end|> é"
    assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
    assert load_tokenizer(str(saved))(text).input_ids == tokenizer(text).input_ids
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16])
def test_the_dtype_asked_for(saved: Path, dtype: str | torch.dtype) -> None:
    model, _ = load_model(str(saved), dtype=dtype, device="cpu")
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    assert {weight.dtype for weight in model.parameters()} == {wanted}


def test_auto_dtype_is_float32_on_the_cpu_and_others_are_refused(saved: Path) -> None:
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert "int8" in _refusal(saved, dtype="int8")[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert choose_device(None) == torch.device("cpu")
    with pytest.raises(RequestError, match="no GPU"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("rank", "here", "chosen"), [("0", 4, 0), ("3", 4, 3), ("3", 1, 0)], ids=["first", "last", "each sees one"]
)
def test_each_process_has_the_gpu_of_its_local_rank(
    monkeypatch: pytest.MonkeyPatch, rank: str, here: int, chosen: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device(None) == torch.device("cuda", chosen)


def test_more_processes_of_torchrun_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("TORCHELASTIC_RUN_ID", "one"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match=r"2 processes .* PyTorch sees 1 GPU; start 1"):
        choose_device(None)


def test_the_pad_token_is_the_end_token_where_there_is_none(copy: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(copy)
    assert load_tokenizer(str(copy)).pad_token == "<|im_end|>"


def test_a_tokenizer_alone_needs_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert len(load_tokenizer(str(copy))) == 320


def test_sharded_weights(copy: Path) -> None:
    model = tiny_model("llama", vocab_size=320)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="50KB")
    shards = sorted(copy.glob("*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(load_model(str(copy))[0](IDS).logits, model(IDS).logits)
    shards[0].unlink()
    assert f"{shards[0].name}, which model.safetensors.index.json names, is missing" in _refusal(copy)[0]


# ---- paths


def test_a_path_that_does_not_exist_names_its_neighbours(saved: Path) -> None:
    (problem,) = _refusal(saved.parent / "tinny-llama")
    assert str(saved) in problem
    assert "smollm2-135m-instruct" in problem
    assert "does not exist" in _refusal("./nothing/here")[0]
    assert "does not exist" in _refusal("model.gguf")[0]
    assert "does not exist" in _refusal("a/b/c")[0]


def test_a_file_that_is_no_gguf_is_refused(saved: Path) -> None:
    assert "is a file" in _refusal(saved / "config.json")[0]


def test_a_revision_of_a_directory_is_refused(saved: Path) -> None:
    assert "leave the revision out" in _refusal(saved, revision="main")[0]


def test_an_empty_directory_lists_all_that_is_missing(tmp_path: Path) -> None:
    problems = _refusal(tmp_path)
    assert len(problems) == 3
    assert all(str(tmp_path) in problem for problem in problems)
    assert ["config.json" in problems[0], "tokenizer" in problems[1], "weights" in problems[2]] == [True] * 3


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in _refusal(tmp_path)[0]


# ---- weights


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save(tiny_model("llama", vocab_size=320).state_dict(), copy / "pytorch_model.bin")
    (problem,) = _refusal(copy)
    assert "pickle" in problem
    assert "pytorch_model.bin" in problem


def test_a_directory_of_ggufs_says_to_name_one(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model.Q4.gguf")
    assert "give one of them, such as model.Q4.gguf" in _refusal(copy)[0]


@pytest.mark.parametrize("cut", [0, 4, 500, -1])
def test_weights_cut_short_are_refused(copy: Path, cut: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    (problem,) = _refusal(copy)
    assert "model.safetensors is damaged or cut short" in problem


def test_weights_left_to_chance_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    (problem,) = _refusal(copy)
    assert "lacks 1 of the model's weights (model.layers.1.mlp.up_proj.weight)" in problem


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    _edit_config(copy, intermediate_size=96)
    (problem,) = _refusal(copy)
    assert "other shapes for 6 of the model's weights" in problem


# ---- kinds of model


def _save_bert(directory: Path) -> None:
    BertForMaskedLM(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=320)
    ).save_pretrained(directory)


def _save_t5(directory: Path) -> None:
    T5ForConditionalGeneration(
        T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=320)
    ).save_pretrained(directory)


def _save_classifier(directory: Path) -> None:
    LlamaForSequenceClassification(tiny_model("llama", vocab_size=320).config).save_pretrained(directory)


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (_save_bert, "'bert' is an encoder"),
        (_save_t5, "'t5' is an encoder-decoder"),
        (_save_classifier, "saved as LlamaForSequenceClassification"),
    ],
)
def test_models_that_do_not_generate_are_refused(tmp_path: Path, save: Callable[[Path], None], said: str) -> None:
    save(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (problem,) = _refusal(tmp_path)
    assert said in problem
    assert "causal" in problem


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "newlm"}, "'newlm' is not known to transformers"),
        ({"model_type": None}, "names no model_type"),
        ({"model_type": "newlm", "auto_map": {"AutoConfig": "x.Y"}}, "trust_remote_code only if you trust it"),
        ({"hidden_size": "wide"}, "not valid for 'llama'"),
        ({"model_type": "clip"}, "not a language model"),
    ],
)
def test_configurations_that_cannot_be_used(copy: Path, fields: dict[str, object], said: str) -> None:
    _edit_config(copy, **fields)
    (problem,) = _refusal(copy)
    assert said in problem


def test_an_adapter_beside_a_model_is_not_loaded_quietly(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in _refusal(copy)[0]


def test_a_config_that_is_no_json(copy: Path) -> None:
    (copy / "config.json").write_text("{oops")
    assert "not a valid JSON file" in _refusal(copy)[0]


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
        "model.safetensors.index.json",
    ],
)  # fmt: skip
def test_json_nested_beyond_what_a_parser_takes_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_text("[" * 100_000)
    with pytest.raises(RequestError, match=r"cannot be (loaded|read)"):
        load_model(str(copy))


def test_code_of_the_model_runs_only_when_asked(copy: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (copy / "own_code.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'ownlm'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    _edit_config(copy, model_type="ownlm", architectures=["OwnModel"], auto_map=auto_map)
    _refusal(copy)
    assert not ran.exists()
    model, _ = load_model(str(copy), trust_remote_code=True)
    assert ran.exists()
    assert type(model).__name__ == "OwnModel"
    assert torch.equal(model(IDS).logits, tiny_model("llama", vocab_size=320)(IDS).logits)


@pytest.mark.parametrize("content", ["{oops", '{"version": "1.0"}', "unknown model"])
def test_a_damaged_tokenizer_is_refused(copy: Path, content: str) -> None:
    path = copy / "tokenizer.json"
    path.write_text(path.read_text().replace('"BPE"', '"XXX"') if content == "unknown model" else content)
    assert "the tokenizer of" in _refusal(copy)[0]


# ---- the hub, as real HTTP on this machine

SCRIPT = """
import json, os, sys, time
from wishbone.errors import RequestError
from wishbone.model.load import load_model, load_tokenizer
for line in sys.stdin:
    if not os.fork():
        for asked in json.loads(line):
            name, _, revision = asked.partition("@")
            start = time.monotonic()
            try:
                model, tokenizer = load_model(name, revision=revision or None, device="cpu")
                total = sum(w.double().abs().sum().item() for w in model.parameters())
                said = ["loaded", total, len(tokenizer), model.name_or_path]
            except RequestError as error:
                said = error.problems
            print(json.dumps([time.monotonic() - start, *said]), flush=True)
        os._exit(0)
    os.wait()
"""


@contextmanager
def _processes(endpoint: str, hf_home: Path) -> Iterator[Callable[..., list[list[object]]]]:
    """A function that loads models in a new process that may ask the hub at `endpoint`: [seconds, what was said ...].

    The hub's address counts when libraries are imported. A process that has imported them here forks those that load.
    """
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(hf_home), "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=inherited | variables, stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asks, said = process.stdin, process.stdout

        def load(*asked: str) -> list[list[object]]:
            asks.write(json.dumps(asked) + "\n")
            asks.flush()
            return [json.loads(said.readline()) for _ in asked]

        yield load
        asks.close()
    assert process.returncode == 0


@contextmanager
def _hub(models: dict[str, Path]) -> Iterator[str]:
    """Serve what the hub's HTTP interface says about these repositories, and one that is gated."""
    commit = "a" * 40

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/"):
                name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                if "/tree/" in name:
                    return self.answer(404, X_Error_Code="EntryNotFound")
                if name == "meta/gated":
                    files = [{"rfilename": "config.json"}]
                    said = {"id": name, "sha": commit, "gated": "manual", "siblings": files, "tags": []}
                    return self.answer(200, json.dumps(said).encode())
                if name not in models:
                    return self.answer(404, X_Error_Code="RepoNotFound")
                if revision not in ("", "main", commit):
                    return self.answer(404, X_Error_Code="RevisionNotFound")
                files = [{"rfilename": file.name} for file in models[name].iterdir()]
                said = {"id": name, "sha": commit, "siblings": files, "tags": [], "gated": False}
                return self.answer(200, json.dumps(said).encode())
            name, _, rest = path.removeprefix("/").partition("/resolve/")
            if name == "meta/gated":
                return self.answer(403, X_Error_Code="GatedRepo")
            file = models.get(name, Path("/nowhere")) / rest.partition("/")[2]
            if not file.is_file():
                return self.answer(404, X_Error_Code="EntryNotFound")
            content = file.read_bytes()
            return self.answer(200, content, ETag=f'"{len(content)}-{file.name}"', X_Repo_Commit=commit)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_a_hub_model_loads_and_loads_again_without_the_hub(saved: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(saved, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    hf_home = tmp_path / "home"
    expected = sum(w.double().abs().sum().item() for w in tiny_model("llama", vocab_size=320).parameters())
    with ExitStack() as stack:
        with _hub({"some/tiny": saved, "some/pickled": pickled}) as endpoint:
            load = stack.enter_context(_processes(endpoint, hf_home))
            loaded, revised, pickle, absent, gated = load(
                "some/tiny", "some/tiny@v9", "some/pickled", "smollm2-135m-instrukt", "meta/gated"
            )
        # the server is gone: what was downloaded loads at once, what was not is refused at once
        again, other = load("some/tiny", "some/other")
    assert loaded[1:] == ["loaded", pytest.approx(expected, rel=1e-12), 320, "some/tiny"]
    assert "has no revision 'v9'" in str(revised[1])
    assert "pickle" in str(pickle[1])
    assert "neither a path nor a repository" in str(absent[1])
    assert "near: smollm2-135m-instruct" in str(absent[1])
    assert "gated" in str(gated[1])
    assert again[1:] == loaded[1:]
    assert "the hub cannot be reached" in str(other[1])
    assert "smollm2-135m-instruct" in str(other[1]) and ".gguf" in str(other[1])
    assert float(str(again[0])) < 5
    assert float(str(other[0])) < 5


@pytest.mark.long  # the test above refuses a connection; this one finds no such host
def test_an_unreachable_hub_is_said_soon_with_what_to_do(tmp_path: Path) -> None:
    with _processes("http://hub.invalid", tmp_path) as load:
        ((seconds, said),) = load("some/model")
    assert "the hub cannot be reached" in str(said)
    assert "smollm2-135m-instruct" in str(said)
    assert ".gguf" in str(said)
    assert float(str(seconds)) < 15


def test_offline_mode_is_named() -> None:
    start = time.monotonic()
    assert "HF_HUB_OFFLINE" in _refusal("some/model")[0]
    assert time.monotonic() - start < 2


def test_a_name_that_cannot_be_a_hub_id_is_refused() -> None:
    assert resolve_model("some/model") == "some/model"
    for name in ("two words", "a/b/c", "", "-x/y"):
        with pytest.raises(RequestError):
            resolve_model(name)


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"num_hidden_layers": 10**9}, "claims 1000000000 layers"),
        ({"num_hidden_layers": 5000, "intermediate_size": 2**40}, "describes"),
        ({"vocab_size": 2**50}, "describes"),
    ],
)
def test_a_config_that_describes_more_than_the_files_hold_is_refused_at_once(
    claims: dict[str, int], said: str, tmp_path: Path
) -> None:
    tiny_model("llama", vocab_size=320).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    load_model(str(tmp_path), device="cpu")
    for nested in (False, True):
        changed = config | ({"text_config": config | claims} if nested else claims)
        (tmp_path / "config.json").write_text(json.dumps(changed))
        began = time.monotonic()
        with pytest.raises(RequestError, match=said):
            load_model(str(tmp_path), device="cpu")
        assert time.monotonic() - began < 10
