"""`wishbone init` and its door in scripts: advice on standard error, the file on standard output or in a file."""

from __future__ import annotations

import ast
import json
import os
import pty
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_model, tiny_tokenizer
from typer.testing import CliRunner, Result

from wishbone.cli import app
from wishbone.config.emit import yaml_string
from wishbone.config.load import load_config, parse_config

TOOL = Path(__file__).parents[2] / "scripts" / "unsloth-dpo_tool.py"
LLAMA = ["--model", "meta-llama/Llama-3.1-8B-Instruct", "--data", "pairs.jsonl"]


@pytest.fixture(autouse=True)
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")


def init(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments])


def test_the_file_goes_to_standard_output_and_the_reasons_to_standard_error():
    outcome = init(*LLAMA, "--gpu", "RTX 4090")
    assert outcome.exit_code == 0, outcome.stderr
    config = parse_config(outcome.stdout)
    assert (config.model.quantization, config.training.learning_rate) == ("int8", 5e-6)
    rows = {line.split()[0]: line for line in outcome.stderr.splitlines() if line.strip()}
    assert "int8" in rows["model.quantization"]
    assert "5e-6 to 1e-5" in rows["training.learning_rate"]
    assert "script." not in outcome.stderr


def test_the_same_advice_in_json_and_as_a_script():
    as_yaml, as_json = (init(*LLAMA, "--gpu", "h200", "--format", form).stdout for form in ("yaml", "json"))
    assert yaml.safe_load(as_yaml) == json.loads(as_json)
    outcome = init(*LLAMA, "--gpu", "h200", "--format", "python")
    ast.parse(outcome.stdout)
    assert "load_in_fp8=True" in outcome.stdout
    assert "gradient checkpointing" in outcome.stderr  # what only scripts need is explained with them


def test_all_problems_come_at_once_and_the_status_is_two():
    outcome = init("--gpu", "RTX 4091", "--gpus", "x", "--symptom", "nam", "--format", "yml", "--method", "LoRa")
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert "7 problems" in outcome.stderr
    for flag in ("--gpu", "--gpus", "--symptom", "--format", "--method", "--model", "--data"):
        assert f"{flag}: " in outcome.stderr
    assert "did you mean" in outcome.stderr and "RTX 4090" in outcome.stderr


def test_a_model_of_unknown_shape_needs_its_size():
    outcome = init("--model", "me/secret", "--data", "d", "--gpu", "T4")
    assert outcome.exit_code == 2
    assert "the shape of 'me/secret' is not known; say how large it is with --parameters-billion" in outcome.stderr
    small, large = (
        init("--model", "me/secret", "--data", "d", "--gpu", "T4", "--parameters-billion", size)
        for size in ("0.4", "13")
    )
    assert (small.exit_code, large.exit_code) == (0, 0)
    assert parse_config(small.stdout).model.quantization == "none"
    assert parse_config(large.stdout).model.quantization == "nf4"


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_a_config_json_that_tells_nothing_is_refused(tmp_path: Path, text: str):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(text)
    outcome = init("--model", "model", "--data", "d")
    assert outcome.exit_code == 2
    assert "--model: " in outcome.stderr and "config.json" in outcome.stderr


def test_a_file_is_written_once(tmp_path: Path):
    outcome = init(*LLAMA, "--gpu", "none", "--output", "my run.yaml")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout == ""
    assert "written: my run.yaml; to train: wishbone train 'my run.yaml'" in outcome.stderr
    first = (tmp_path / "my run.yaml").read_bytes()
    assert first.isascii() and b"\r" not in first
    again = init(*LLAMA, "--output", "my run.yaml", "--gpu", "T4")
    assert again.exit_code == 2
    assert "'my run.yaml' exists" in again.stderr
    assert (tmp_path / "my run.yaml").read_bytes() == first
    nowhere = init(*LLAMA, "--gpu", "none", "--output", "none/run.yaml")
    assert nowhere.exit_code == 2
    assert "because 'none' is not a directory; make it" in nowhere.stderr


@pytest.mark.parametrize("text", ["[red]x", "\x1b[31mx", 'it\'s "so"'])
def test_what_was_typed_is_shown_as_text(text: str):
    outcome = init("--model", text, "--data", "d", "--parameters-billion", "1")
    shown = outcome.stdout + outcome.stderr
    assert "\x1b" not in shown
    if outcome.exit_code == 0:
        assert yaml.safe_load(outcome.stdout)["model"]["name"] == text
        assert yaml_string(text) in outcome.stderr


def test_warnings_are_notes():
    outcome = init(*LLAMA, "--gpu", "none", "--learning-rate", "2e-4")
    assert "note: 0.0002 is a rate for supervised fine-tuning" in outcome.stderr


def test_trl_has_no_document_with_a_reference_model():
    arguments = [*LLAMA, "--gpu", "none", "--target", "trl", "--reference", "given", "--reference-model", "r"]
    assert init(*arguments).exit_code == 2
    assert init(*arguments, "--format", "python").exit_code == 0


def test_without_a_terminal_it_does_not_ask():
    outcome = init()
    assert outcome.exit_code == 2
    assert "--model: required, but missing" in outcome.stderr and "--data: required, but missing" in outcome.stderr


@pytest.mark.slow
def test_what_is_written_can_be_trained(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = init("--model", "./model", "--data", "pairs.jsonl", "--pairs", "20", "--output", "run.yaml")
    assert written.exit_code == 0, written.stderr
    outcome = CliRunner().invoke(app, ["train", "run.yaml", "--dry-run"])
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr.count("note:") == 1 and "as one user turn and one answer" in outcome.stderr
    lines = {line[:17].strip(): line[17:].strip() for line in outcome.stdout.splitlines()}
    assert lines["Learning rate"].startswith("1e-5, linear")
    assert "of 4 pairs, epochs: 3" in lines["Steps"]
    config = load_config("run.yaml")
    assert (config.data.max_length, config.data.eval_fraction) == (512, 0.1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of two layers whose positions end at 600."""
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=600).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write_rows(path: Path, count: int, **more: object) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} | more for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_the_data_decide_lengths_steps_and_what_is_held_out(tmp_path: Path, model: Path):
    """Few pairs, many pairs and long pairs get other settings; nothing was said of them."""
    settings = {}
    for name, count, more in (("few", 50, {}), ("many", 1200, {}), ("long", 30, {"chosen": "one two " * 600})):
        write_rows(tmp_path / f"{name}.jsonl", count, **more)
        outcome = init("--model", "./model", "--data", f"{name}.jsonl", "--gpu", "none", "--output", f"{name}.yaml")
        assert outcome.exit_code == 0, outcome.stderr
        config = load_config(f"{name}.yaml")
        batch = config.training.batch_size * config.training.gradient_accumulation
        settings[name] = (config.data.max_length, config.data.eval_fraction, batch)
        assert f"found: {count:,} pairs in {name}.jsonl" in outcome.stderr
    assert settings == {"few": (512, 0.1, 4), "many": (512, 0.05, 16), "long": (768, 0.1, 4)}
    assert "30 of 30 pairs are longer than the 600 positions of the model" in outcome.stderr


@pytest.mark.slow
def test_rows_that_cannot_be_used_are_left_out_and_said(tmp_path: Path, model: Path):
    write_rows(tmp_path / "pairs.jsonl", 30)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('not JSON\n{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    outcome = init("--model", "./model", "--data", "pairs.jsonl", "--gpu", "none", "--output", "run.yaml", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    said = json.loads(outcome.stdout)
    assert said["settings"]["data.invalid_rows"] == "drop"
    assert said["situation"]["pairs"] == 30 and said["fits"] is True
    (note,) = (note for note in said["notes"] if "2 rows cannot be used and will be left out" in note)
    assert "chosen and rejected are the same" in note and outcome.stderr.count("is not JSON") == 1
    assert load_config("run.yaml").data.invalid_rows == "drop"
    assert said["text"] == (tmp_path / "run.yaml").read_text()
    planned = CliRunner().invoke(app, ["train", "run.yaml", "--dry-run"])
    assert planned.exit_code == 0, planned.stderr


def test_the_file_names_its_schema_for_editors(tmp_path: Path):
    assert init(*LLAMA, "--gpu", "none", "--output", "run.yaml").exit_code == 0
    first = (tmp_path / "run.yaml").read_text().splitlines()[0]
    name, _, place = first.partition("=")
    assert name == "# yaml-language-server: $schema"
    schema = json.loads(Path(urllib.request.url2pathname(urllib.parse.urlparse(place).path)).read_text())
    assert set(schema["properties"]) == {"model", "adapter", "data", "preference", "training", "output"}
    assert "yaml-language-server" not in init(*LLAMA, "--gpu", "none").stdout


def test_data_that_are_not_here_are_said():
    outcome = init(*LLAMA, "--gpu", "none")
    assert "note: pairs.jsonl is not here, so lengths and steps are for usual data" in outcome.stderr
    assert parse_config(outcome.stdout).data.eval_fraction == 0


def converse(command: list[str], answers: list[str], directory: Path) -> tuple[int, str, str]:
    """Run a command on a terminal and answer it; its status, its standard output, and what the terminal showed."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, cwd=directory, env={**os.environ, "TERM": "dumb"}
    )
    os.close(theirs)
    os.write(ours, "".join(f"{answer}\n" for answer in answers).encode())
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    written = child.stdout.read() if child.stdout else b""
    return child.wait(60), written.decode(), shown.decode()


@pytest.mark.slow
def test_on_a_terminal_it_asks_and_asks_again(tmp_path: Path):
    answers = ["", "pairs.jsonl", "RTX 4091", "RTX 4090", "", "colapse", "collapse, nan", "trl", "python", ""]
    status, written, shown = converse([sys.executable, "-m", "wishbone", "init"], answers, tmp_path)
    assert status == 0, shown
    assert "Did you mean collapse?" in shown and "is not the name of one known GPU" in shown
    script = ast.unparse(ast.parse(written))
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in script
    assert "learning_rate=2.5e-06" in script.replace(" ", "")
    assert "max_grad_norm=0.3" in script.replace(" ", "")


def tool(*arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.slow
def test_the_tool_writes_the_same():
    arguments = [*LLAMA, "--gpu", "L4", "--symptom", "nan", "--symptom", "length_growth", "--target", "unsloth"]
    outcome = tool(*arguments)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == init(*arguments).stdout
    assert tool("--help").returncode == 0
    refused = tool("--data", "d")
    assert (refused.returncode, refused.stdout) == (2, "")


def test_the_tool_says_how_to_install_wishbone(tmp_path: Path):
    outcome = subprocess.run(
        [sys.executable, "-S", str(TOOL)], capture_output=True, text=True, cwd=tmp_path, check=False, env={"PATH": ""}
    )
    assert outcome.returncode == 1
    assert "pip install ." in outcome.stderr
    assert "Traceback" not in outcome.stderr
