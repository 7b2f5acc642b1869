"""`wishbone plan`: what a person and a program see, and how a run that does not fit is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer
from typer.testing import CliRunner, Result

from wishbone.cli import app
from wishbone.planning import hardware
from wishbone.planning.hardware import Accelerator

LLAMA = "model: {name: meta-llama/Llama-3.1-8B-Instruct}\n"
DATA = "data: {train: pairs.jsonl}\n"
GIVEN = ["--pairs", "1000", "--gpu"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    rows = [{"prompt": "What is green? " * n, "chosen": "Grass.", "rejected": "Nothing is."} for n in range(1, 20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "run.yaml").write_text(LLAMA + DATA, encoding="utf-8")
    return tmp_path


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", "run.yaml", *arguments])


def test_a_run_that_fits_is_shown_with_its_memory():
    outcome = plan(*GIVEN, "RTX 4090")
    assert outcome.exit_code == 0, outcome.output
    for part in (
        "8.03 billion weights, bfloat16 (known by name)",
        "adapters of rank 16, 41.9 million parameters",
        "RTX 4090, 24.0 GiB",
        "pairs.jsonl; tokens as given",
        "125, with 8 pairs",
        "Fits: ",
    ):
        assert part in outcome.stdout
    assert "scaled by the published rates of this GPU" in outcome.stdout
    assert outcome.stderr == ""


def test_a_run_that_does_not_fit_says_what_does_and_ends_with_2():
    outcome = plan(*GIVEN, "RTX 4080", "training.token_budget=8192")
    assert outcome.exit_code == 2
    assert "Does not fit: it needs" in outcome.stdout
    assert "model.quantization=int8" in outcome.stdout
    assert '--gpu "' in outcome.stdout


def test_json_holds_the_same_and_nothing_else():
    outcome = plan(*GIVEN, "H200", "--json")
    found = json.loads(outcome.stdout)
    assert outcome.exit_code == 0
    assert found["fits"] is True
    assert found["model"]["parameters"] == 8_030_261_248
    assert found["device"]["name"] == "H200"
    assert found["memory"]["total"] == sum(found["memory"]["items"].values()) <= found["device"]["limit"]
    assert found["rows"]["kept_layers"] == 32
    assert found["schedule"]["steps"] == 125
    assert 0.1 < found["step_seconds"] < 2


def test_what_others_use_of_this_machines_gpu_is_not_planned_with(monkeypatch: pytest.MonkeyPatch):
    own = Accelerator("cuda", "NVIDIA GeForce RTX 4090", 24 * 2**30, 14 * 2**30, (8, 9), bf16=True, fp8=True, int8=True)
    monkeypatch.setattr(hardware, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(hardware, "read_accelerators", lambda: [own])
    found = json.loads(plan("--pairs", "100", "--json", "model.quantization=nf4").stdout)
    assert found["device"]["limit"] == pytest.approx((14.5 - 0.04 * 24) * 2**30)
    assert plan("--pairs", "100").exit_code == 2
    assert plan("--pairs", "100", "--gpu-memory-gib", "24").exit_code == 0


def test_a_directory_is_planned_with_its_own_tokenizer(here: Path):
    tiny_model("llama").save_pretrained(here / "model")
    tiny_tokenizer().save_pretrained(here / "model")
    outcome = plan("model.name=model", "--gpu", "none")
    assert outcome.exit_code == 0, outcome.output
    assert "tokens by the model's tokenizer" in outcome.stdout
    assert "(its config.json)" in outcome.stdout
    assert "this machine's CPU" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*GIVEN, "RTX 4095"], "did you mean RTX 4090 or"),
        ([*GIVEN, "H200", "model.name=Qwen/Qwen3-9B"], "did you mean Qwen/Qwen3-8B?"),
        ([*GIVEN, "RTX 3090", "model.quantization=fp8"], "RTX 3090 has compute capability 8.6"),
        ([*GIVEN, "none", "--gpu-memory-gib", "24"], "--gpu-memory-gib: 24 needs a GPU"),
        (["--gpu", "H200", "data.train=missing.jsonl"], "missing.jsonl"),
        ([*GIVEN, "H200", "model.name=broken"], "lacks hidden_size, num_hidden_layers"),
        ([*GIVEN, "H200", "model.name=empty"], "cannot be read"),
        ([*GIVEN, "H200", "model.name=m.gguf"], "GGUF"),
    ],
)
def test_a_wrong_request_is_explained(here: Path, arguments: list[str], expected: str):
    (here / "broken").mkdir()
    (here / "broken" / "config.json").write_text('{"vocab_size": 9}', encoding="utf-8")
    (here / "empty").mkdir()
    (here / "m.gguf").touch()
    outcome = plan(*arguments)
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert expected in outcome.stderr


def test_names_from_outside_are_text(here: Path):
    (here / "run.yaml").write_text('model: {name: meta-llama/Llama-3.2-1B}\ndata: {train: "[bold]x[/]"}\n')
    outcome = plan(*GIVEN, "L4")
    assert "1,000 of [bold]x[/]" in outcome.stdout


@pytest.mark.slow
def test_into_an_ascii_pipe_bars_are_ascii(here: Path):
    command = [sys.executable, "-m", "wishbone", "plan", "run.yaml", *GIVEN, "RTX 4090"]
    outcome = subprocess.run(command, capture_output=True, cwd=here, env={"PYTHONIOENCODING": "ascii", "PATH": ""})
    assert outcome.returncode == 0, outcome.stderr
    assert b"####" in outcome.stdout


@pytest.mark.slow
def test_no_torch_is_loaded(here: Path):
    program = (
        "import sys; from typer.testing import CliRunner; from wishbone.cli import app\n"
        f"outcome = CliRunner().invoke(app, ['plan', 'run.yaml', {', '.join(map(repr, GIVEN))}, 'H200'])\n"
        "assert outcome.exit_code == 0, outcome.output\n"
        "print('torch' in sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=here, check=True)
    assert outcome.stdout.strip() == "False"
