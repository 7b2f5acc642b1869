"""`wishbone train`, from the plan of a run to its end and its failure, on a model of two layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from typer.testing import CliRunner, Result

from wishbone.cli import app
from wishbone.cli.request import TRACEBACK_VARIABLE
from wishbone.cli.train import _planned, _print_an_answer
from wishbone.config.load import load_config
from wishbone.config.run_directory import ERROR_LOG
from wishbone.errors import RequestError
from wishbone.run import run
from wishbone.run.training_arguments import training_arguments

CONFIG = """\
model: {name: ./model}
data: {train: pairs.jsonl, max_length: 64}
adapter: {rank: 2}
training: {batch_size: 2, gradient_accumulation: 2, max_steps: 2, save_steps: 1, warmup_ratio: 0.5}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def workplace(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").symlink_to(model)
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(10)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    return tmp_path


def train(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", "tiny.yaml", *arguments])


def test_bars_are_off_in_a_pipe_before_the_checks_import_datasets(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def check(*_: object, **__: object) -> None:
        seen.extend(os.environ.get(name) for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"))
        raise RequestError("enough")

    monkeypatch.setattr(sys.modules["wishbone.cli.train"], "check_access", check)
    for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert train().exit_code == 2 and seen == ["1", "1"]


@pytest.mark.parametrize(("heldout", "kind"), [(True, "held-out"), (False, "training")])
def test_answers_that_stayed_are_those_of_the_pairs_that_there_are(
    heldout: bool, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _print_an_answer([{"prompt": "Hi", "before": "Hello.", "after": "Hello."}], heldout=heldout)
    assert f"The greedy answers to 1 prompt of the {kind} pairs are the same as before." in capsys.readouterr().err


def test_the_plan_is_printed_and_nothing_is_written(workplace: Path):
    before = sorted(workplace.iterdir())
    outcome = train("--dry-run", "training.max_steps=null", "training.epochs=3", "data.eval_fraction=0.2")
    assert outcome.exit_code == 0, outcome.stderr
    lines = {line[:17].strip(): line[17:].strip() for line in outcome.stdout.splitlines()}
    assert lines["Model"] == f"{workplace}/model, dtype auto"
    assert lines["Trained"] == "LoRA adapters of rank 2, alpha 2, dropout 0, on all linear layers"
    assert lines["Pairs"] == f"8 of {workplace}/pairs.jsonl, split train"
    assert lines["Held out"] == "2 pairs"
    assert lines["Loss"] == "sigmoid, beta 0.1"
    assert lines["Steps"] == "6 optimizer steps of 4 pairs, epochs: 3"
    assert lines["Learning rate"] == "5e-6, linear after 3 steps of warm-up"
    assert lines["Run directory"].startswith(f"{workplace}/runs/tiny-")
    assert sorted(workplace.iterdir()) == before


def test_the_plan_counts_what_truncation_cuts(workplace: Path):
    """Prompt "What is n?" and completions in tokens of the tokenizer itself; the limit leaves one token to cut."""
    tokenizer = tiny_tokenizer()

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    row = {"prompt": "What is 1?", "chosen": " It is one, of course.", "rejected": " No."}
    (workplace / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    longest = tokens(row["prompt"] + row["chosen"]) + 1  # and the end of the sequence
    outcome = train("--dry-run", "data.template=none", f"data.max_length={longest - 1}")
    assert f"pairs longer than {longest - 1} tokens: 1; their start is kept, 1 token is cut" in outcome.stdout
    outcome = train("--dry-run", "data.template=none", f"data.max_length={longest}")
    assert f"none needed: every prompt with a completion fits into {longest} tokens" in outcome.stdout


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_plan_that_cannot_be_printed_is_not_there(workplace: Path):
    command = [sys.executable, "-m", "wishbone", "train", "tiny.yaml", "--dry-run"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert "standard output takes no more (No space left on device)" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_plan_refuses_what_training_would_refuse(workplace: Path):
    (workplace / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "[red]b", "rejected": "[red]b"}\n')
    outcome = train("--dry-run")
    assert outcome.exit_code == 2
    assert "chosen and rejected are the same" in outcome.stderr
    assert outcome.stdout == ""


@pytest.mark.slow
def test_a_run_ends_in_its_directory_and_can_be_continued(workplace: Path):
    outcome = train()
    assert outcome.exit_code == 0, outcome.stderr
    (run,) = (workplace / "runs").iterdir()
    assert run.name.startswith("tiny-")
    assert outcome.stdout == f"done: {run}\n"
    assert {"adapter", "checkpoints", "config.yaml", "metrics.jsonl"} <= {path.name for path in run.iterdir()}
    outcome = train("training.max_steps=3", "--resume")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout == f"done: {run}\n"
    assert (run / "checkpoints" / "checkpoint-3").is_dir()
    assert train(f"output.dir={run}").exit_code == 2


@pytest.mark.slow
def test_the_end_is_data_on_demand(workplace: Path):
    outcome = train("--json", "data.eval_fraction=0.2", "output.dir=out")
    assert outcome.exit_code == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    assert (result["status"], result["summary"]["steps"]) == ("done", 2)
    assert set(result["measured"]["metrics"]["loss"]) == {"before", "after"}
    assert len(result["answers"]) == 2 and result["answers"][0]["chosen"].startswith("It is ")
    assert train("--json", "--dry-run").exit_code == 2
    again = CliRunner().invoke(app, ["report", "out", "--json"])
    assert json.loads(again.stdout)["measured"] == result["measured"]


def test_answers_can_be_left_out(workplace: Path):
    assert train("output.answers=0", "output.dir=out", "training.max_steps=1").exit_code == 0
    assert not (workplace / "out" / "answers.json").exists()


def first_metrics(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["adapter.method=full"],
        ["model.reference=./model"],
        ["adapter.method=full", "model.reference=./model"],
        ["model.quantization=fp8"],
        ["model.quantization=int8"],
        ["training.activations=offload"],
    ],
)
def test_every_reference_and_form_of_weights_begins_at_ln_2(workplace: Path, settings: list[str]):
    outcome = train("output.dir=mine", "output.answers=0", "training.max_steps=1", *settings)
    assert outcome.exit_code == 0, outcome.stderr
    assert first_metrics(workplace / "mine")["loss"] == pytest.approx(0.6931472, abs=1e-5)
    summary = json.loads((workplace / "mine" / "summary.json").read_text())
    assert summary["form"] == "shared_prefix"
    parts = {one["part"]: (one["fused"], one["layers"]) for one in summary["fused_parts"]}
    assert parts["attention"] == (2, 2) and parts["norm"] == (0, 5), "norms stay as they are without a GPU"
    offloaded = "training.activations=offload" in settings
    execution = {name: summary["execution"][name] for name in ("token_budget", "offload", "graph_lengths")}
    assert execution == {"token_budget": 1024, "offload": "always" if offloaded else "as needed", "graph_lengths": []}
    assert summary["execution"]["kept_layers"] == (0 if offloaded else summary["execution"]["layers"])
    learned = workplace / "mine" / ("model" if "adapter.method=full" in settings else "adapter")
    assert (learned / "tokenizer.json").exists() and list(learned.glob("*.safetensors"))


@pytest.mark.slow
def test_another_model_as_the_reference_is_read_from_its_own_place(workplace: Path):
    other = workplace / "other"
    tokenizer = tiny_tokenizer()
    tiny_model("llama", seed=1, vocab_size=len(tokenizer)).save_pretrained(other)
    tokenizer.save_pretrained(other)
    outcome = train("output.dir=mine", "model.reference=./other")
    assert outcome.exit_code == 0, outcome.stderr
    assert abs(first_metrics(workplace / "mine")["loss"] - 0.6931472) > 1e-4
    assert str(other) in train("--dry-run", "model.reference=./other").stdout
    outcome = train("--dry-run", "model.reference=./othr")
    assert outcome.exit_code == 2 and "did you mean" in outcome.stderr


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A fault of the program itself, which nobody foresaw, while a run starts."""

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(run, "training_arguments", fail)
    return monkeypatch


@pytest.mark.slow
def test_a_failure_is_one_message_and_the_traceback_is_kept(workplace: Path, fault: pytest.MonkeyPatch):
    outcome = train("output.dir=mine[bold]")
    assert outcome.exit_code == 1
    log = workplace / "mine[bold]" / ERROR_LOG
    failure = outcome.stderr[outcome.stderr.index("failed: ") :].splitlines()
    assert failure[0].startswith("failed: RuntimeError: a fault")
    assert failure[1:] == [f"Full traceback: {log} ({TRACEBACK_VARIABLE}=1 shows it here)"]
    assert log.read_text().startswith("Traceback (most recent call last)")
    assert [path.name for path in log.parent.iterdir()] == [ERROR_LOG]
    fault.setattr(run, "training_arguments", training_arguments)
    assert train("output.dir=mine[bold]").exit_code == 0, "a start that failed is in nobody's way"


def test_the_traceback_is_shown_on_request(workplace: Path, fault: pytest.MonkeyPatch):
    fault.setenv(TRACEBACK_VARIABLE, "1")
    outcome = train("output.dir=mine")
    assert outcome.exit_code == 1
    assert "Traceback (most recent call last)" in outcome.stderr
    assert "failed: RuntimeError" in outcome.stderr
    assert not (workplace / "mine").exists(), "nothing was written, so nothing is left"


def test_a_directory_that_cannot_be_made(workplace: Path):
    (workplace / "file").touch()
    outcome = train("output.dir=file/run")
    assert outcome.exit_code == 2
    assert "file is not a directory" in outcome.stderr
    assert "name another directory" in outcome.stderr


def test_a_traceback_that_cannot_be_written(workplace: Path, fault: pytest.MonkeyPatch):
    (workplace / "mine" / "error.log").mkdir(parents=True)
    outcome = train("output.dir=mine")
    assert outcome.exit_code == 1
    assert f"The traceback could not be written (Is a directory); {TRACEBACK_VARIABLE}=1 shows it" in outcome.stderr


def test_a_directory_of_others_is_refused_and_a_request_that_is_wrong_leaves_none(workplace: Path):
    (workplace / "others").mkdir()
    for name in ("thesis.tex", "a", "b", "c", "d", "e"):
        (workplace / "others" / name).touch()
    outcome = train("output.dir=others")
    assert outcome.exit_code == 2
    assert "is not empty and holds no run (it has 'a', 'b', 'c', 'd', 'e' and 1 more)" in outcome.stderr
    assert len(list((workplace / "others").iterdir())) == 6
    (workplace / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    assert train().exit_code == 2
    assert not (workplace / "runs").exists()


def test_weights_that_are_not_finite_are_refused_by_name(workplace: Path):
    model = tiny_model("llama", vocab_size=len(tiny_tokenizer()))
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("inf")
    model.save_pretrained(workplace / "broken")
    tiny_tokenizer().save_pretrained(workplace / "broken")
    outcome = train("model.name=./broken", "output.dir=mine")
    assert outcome.exit_code == 2
    assert "NaN or infinite (1: model.layers.1.mlp.up_proj.weight)" in outcome.stderr
    assert not (workplace / "mine").exists()


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.slow
def test_a_run_stops_at_the_first_loss_that_is_not_finite(workplace: Path):
    """The rate is 0 in the first step of the warm-up; what was saved by then stays, and is finite."""
    settings = [
        "data.template=none",
        "adapter.method=full",
        "training.learning_rate=1",
        "training.max_steps=20",
        "preference.beta=1e17",
    ]
    outcome = train("output.dir=mine", *settings)
    assert outcome.exit_code == 1, outcome.stderr
    run = workplace / "mine"
    summary = strict((run / "summary.json").read_text())
    assert summary["status"] == "failed" and "is not finite" in summary["reason"]
    failure = outcome.stderr[outcome.stderr.index("failed: ") :]
    assert failure.startswith(f"failed: {summary['reason']}")
    lines = [strict(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == summary["steps"] < 20
    saved = sorted((run / "checkpoints").glob("checkpoint-*/model.safetensors"))
    assert saved, "the first steps are finite"
    assert all(tensor.isfinite().all() for path in saved for tensor in load_file(path).values())
    assert not (run / "model").exists() and not (run / ERROR_LOG).exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["/dev/full"])
def test_metrics_that_cannot_be_written_are_said_once_and_training_goes_on(
    workplace: Path, where: str, caplog: pytest.LogCaptureFixture
):
    assert train("output.dir=mine", "training.max_steps=1").exit_code == 0
    metrics = workplace / "mine" / "metrics.jsonl"
    metrics.unlink()
    metrics.symlink_to(where)
    outcome = train("output.dir=mine", "training.max_steps=3", "--resume")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr.count("cannot be written (No space left on device): training continues") == 1
    assert json.loads((workplace / "mine" / "summary.json").read_text())["lost_metrics_lines"] == 2


@pytest.mark.slow
def test_malformed_rows_and_rows_that_cannot_teach_are_refused_together(workplace: Path):
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(1000)]
    rows[10]["chosen"] = rows[10]["rejected"]
    rows[500]["chosen"] = ""
    rows[900]["rejected"] = None
    (workplace / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = train("--dry-run")
    assert outcome.exit_code == 2
    for place in ("line 901 rejected is empty", "(row 11)", "(row 501)", "data.invalid_rows: drop"):
        assert place in outcome.stderr
    dropped = train("--dry-run", "data.invalid_rows=drop")
    assert dropped.exit_code == 0 and "997" in dropped.stdout


@pytest.mark.parametrize("resume", [False, True])
def test_only_the_first_process_looks_into_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """Another one may see it between two operations of the first: there already, and its lock not yet or no more."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "begun").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "pairs.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("run.yaml"), ["output.dir=half"])
    with pytest.raises(RequestError, match="half"):
        _planned(config, "run", resume=resume)
    monkeypatch.setenv("RANK", "1")
    assert _planned(config, "run", resume=resume).output.dir == str(tmp_path / "half")
    assert _planned(load_config(Path("run.yaml"), []), "run", resume=resume).output.dir is None
