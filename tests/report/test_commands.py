from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from fake_run import WriteRun
from learned import Learned
from ordinary_user import ordinary_user
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from wishbone.cli import app
from wishbone.cli.answers import print_answer
from wishbone.config import dump_config, parse_config

EVIL = "\x1b[31mred\x1b]0;title\x07 [bold red]markup[/] \x9b2J\ttab"


def wishbone(*words: str, width: int = 100) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": str(width)}, catch_exceptions=False)


def harmless(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.fixture
def comparable(learned: Learned, tmp_path: Path) -> Path:
    """A run of the tiny model with an adapter, data of five prompts, and one in five held out."""
    rows = [
        {"prompt": f"Count to {n}", "chosen": " one two", "rejected": " three"}
        for n in ("ten", "six", "two", "one", "me")
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = tmp_path / "run"
    shutil.copytree(learned.run, run)
    config = parse_config(
        f"model: {{name: {learned.base.name}, dtype: float32}}\ndata: {{train: {data}, eval_fraction: 0.4}}\n"
    )
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return run


def test_report_writes_the_page_and_prints_the_result(write_run: WriteRun) -> None:
    run = write_run(collapse=True)
    result = wishbone("report", str(run))
    assert result.exit_code == 0
    assert (run / "report.html").is_file()
    assert "0.6931" in result.stdout
    assert "Chosen answers became less likely" in result.stdout
    assert result.stdout.rstrip().endswith("report.html")


def test_report_shows_answers_before_and_after_whatever_a_file_says(write_run: WriteRun) -> None:
    run = write_run()
    first = {"prompt": [{"role": "user", "content": "Why?"}], "before": "A long story.", "after": "Because."}
    strange = {"prompt": {"role": 3}, "before": None, "after": [EVIL]}
    (run / "answers.json").write_text(json.dumps([first, strange, {}, first, first]), encoding="utf-8")
    shown = wishbone("report", str(run)).stdout
    assert shown.count("A long story.") == shown.count("Because.") == 1 and "1. Why?" in shown
    assert harmless(shown) and "2 more answers in the report" in shown
    assert json.loads(wishbone("report", str(run), "--json").stdout)["answers"][0] == first


def test_report_of_something_else_is_a_wrong_request(tmp_path: Path) -> None:
    result = wishbone("report", str(tmp_path))
    assert result.exit_code == 2
    assert "no metrics.jsonl" in result.stderr
    assert not list(tmp_path.iterdir())


def test_report_prints_values_of_a_run_as_text(write_run: WriteRun) -> None:
    run = write_run()
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (run / "summary.json").write_text(json.dumps(summary | {"status": EVIL, "model": EVIL, "form": EVIL}))
    result = wishbone("report", str(run))
    assert result.exit_code == 0
    assert harmless(result.stdout)
    assert "[bold red]markup[/]" in result.stdout


def test_compare_takes_the_prompts_that_the_run_held_out(comparable: Path) -> None:
    """Two of five are held out; which ones, only the training's own split says."""
    from wishbone.config import load_config
    from wishbone.model.load import load_tokenizer
    from wishbone.run.prepare_data import prepare_data

    # A run that recorded no template is one of version 0.1.0, which trained texts as they are.
    config = load_config(comparable / "config.yaml", ["data.template=none"])
    _, heldout, _ = prepare_data(config, load_tokenizer(config.model.name))
    assert heldout is not None
    result = wishbone("compare", str(comparable), "--max-new-tokens", "6", "--json")
    assert result.exit_code == 0
    answers = json.loads(result.stdout)
    assert [answer["prompt"] for answer in answers] == heldout["prompt"][:]
    assert [answer["chosen"] for answer in answers] == [" one two", " one two"]
    assert json.loads((comparable / "answers.json").read_text(encoding="utf-8")) == answers


def test_compare_answers_prompts_and_refreshes_the_report(comparable: Path, learned: Learned) -> None:
    (comparable / "config.yaml").write_text(
        f"model: {{name: {learned.base.name}, dtype: float32}}\ndata: {{train: gone.jsonl}}\n", encoding="utf-8"
    )
    result = wishbone("compare", str(comparable), "--prompt", "Hi <b>", "--prompt", EVIL, "--max-new-tokens", "8")
    assert result.exit_code == 0
    assert harmless(result.stdout)
    assert "1. Hi <b>" in result.stdout
    page = (comparable / "report.html").read_text(encoding="utf-8")
    assert "Hi &lt;b&gt;" in page
    answers = json.loads((comparable / "answers.json").read_text(encoding="utf-8"))
    assert answers[1]["prompt"] == [{"role": "user", "content": EVIL}]


@pytest.mark.parametrize("harm", ["pickle", "half"])
def test_an_adapter_that_is_no_whole_safetensors_file_is_a_wrong_request(comparable: Path, harm: str) -> None:
    weights = comparable / "adapter" / "adapter_model.safetensors"
    if harm == "pickle":
        weights.unlink()
        (comparable / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(print))
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    result = wishbone("compare", str(comparable), "--prompt", "Hi", "--max-new-tokens", "2")
    assert result.exit_code == 2
    assert ("save the adapter again" if harm == "pickle" else "is damaged") in result.stderr


@pytest.mark.parametrize("command", ["compare", "eval", "report"])
@pytest.mark.parametrize("shut", ["adapter", "."])
def test_a_run_that_may_not_be_looked_into_is_a_wrong_request(comparable: Path, command: str, shut: str) -> None:
    closed = comparable / shut
    closed.chmod(0)
    try:
        with ordinary_user():
            result = wishbone(command, str(comparable), *(["pairs.jsonl"] if command == "eval" else []))
    finally:
        closed.chmod(0o755)
    if (command, shut) == ("report", "adapter"):
        assert result.exit_code == 0  # it reads no weights
    else:
        assert result.exit_code == 2
        assert "Permission denied" in result.stderr or "is not readable" in result.stderr


def test_compare_of_a_run_that_has_not_ended_is_a_wrong_request(write_run: WriteRun) -> None:
    run = write_run()
    result = wishbone("compare", str(run), "--prompt", "Hi")
    assert result.exit_code == 2
    assert "no adapter/" in result.stderr and "continue it with" in " ".join(result.stderr.split())
    (run / "summary.json").write_text('{"status": "failed", "reason": "a gradient of step 1 is not finite"}')
    failed = wishbone("compare", str(run), "--prompt", "Hi")
    assert failed.exit_code == 2 and "it failed (a gradient of step 1 is not finite): put that right" in " ".join(
        failed.stderr.split()
    )


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).touch()
class StrangeConfig(LlamaConfig):
    model_type = "strange"
class StrangeModel(LlamaForCausalLM):
    config_class = StrangeConfig
"""


@pytest.fixture
def strange(comparable: Path, learned: Learned, tmp_path: Path) -> Path:
    """A run that a stranger sent, whose model comes with code; the code makes the file "it ran" beside the run."""
    base = tmp_path / "base"
    shutil.copytree(learned.base.name, base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": "strange",
        "architectures": ["StrangeModel"],
        "auto_map": {"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.StrangeModel"},
    }
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (base / "strange.py").write_text(CODE.format(marker=str(tmp_path / "it ran")), encoding="utf-8")
    (comparable / "config.yaml").write_text(
        f"model: {{name: {base}, dtype: float32, trust_remote_code: true}}\ndata: {{train: gone.jsonl}}\n",
        encoding="utf-8",
    )
    return comparable


@pytest.mark.parametrize("words", [("compare", "--prompt", "Hi", "--max-new-tokens", "3"), ("chat",)])
def test_code_of_a_run_runs_only_when_this_call_says_so(
    strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    asked = (words[0], str(strange), *words[1:])
    refused = wishbone(*asked)
    assert refused.exit_code == 2
    assert "the run says trust_remote_code" in refused.stderr
    assert "--trust-remote-code" in refused.stderr
    assert not (tmp_path / "it ran").exists()
    trusted = wishbone(*asked, "--trust-remote-code")
    assert (tmp_path / "it ran").exists()
    assert trusted.exit_code == 0, trusted.stderr


@pytest.mark.parametrize("width", [100, 60, 40])
def test_answers_fit_the_terminal_whatever_they_hold(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    prompt = [{"role": "system", "content": EVIL}, {"role": "user", "content": "多" * 80}]
    print_answer(1, prompt, EVIL + " word" * 60, "x" * 300)
    shown = capsys.readouterr().out
    assert harmless(shown)
    assert "[boldred]markup[/]" in "".join(shown.split())
    lines = shown.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert shown.count("x") >= 300
    side_by_side = any("Before" in line and "After" in line for line in lines)
    assert side_by_side is (width > 50)


def test_an_empty_answer_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(1, "Hi", " \n", "there")
    assert "(empty)" in capsys.readouterr().out
