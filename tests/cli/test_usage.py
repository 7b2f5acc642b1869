"""Words that a command does not take: each is answered with the words that do what was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wishbone import __version__
from wishbone.cli import app

SETTINGS = "model: {name: smollm2-135m-instruct}\ndata: {train: pairs.jsonl}\n"
PAIR = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of settings, pairs, and a run that was stopped."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "run.yaml").write_text(SETTINGS)
    (folder / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(SETTINGS)
    (run / "metrics.jsonl").touch()
    return folder


def said(words: str) -> str:
    """What standard error says of words that are refused."""
    outcome = CliRunner().invoke(app, words.split(), prog_name="wishbone", env={"COLUMNS": "800"})
    assert (outcome.exit_code, outcome.stdout) == (2, ""), outcome.output
    assert outcome.stderr.startswith("wishbone: ")
    assert "Usage:" not in outcome.stderr
    return outcome.stderr


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("train run.yaml --learning-rate 1e-5", "train run.yaml training.learning_rate=1e-5"),
        ("train run.yaml --training.learning_rate=1e-5", "train run.yaml training.learning_rate=1e-5"),
        ("train --lr 1e-5 --resume run.yaml", "train --resume run.yaml training.learning_rate=1e-5"),
        ("train run.yaml -lr 1e-5", "train run.yaml training.learning_rate=1e-5"),
        ("train run.yaml --model org/m --beta=0.2", "train run.yaml model.name=org/m preference.beta=0.2"),
        ("train run.yaml --output-dir x a.b=1", "train run.yaml output.dir=x a.b=1"),
        ("plan run.yaml --gpu T4 --max-length 512", "plan run.yaml --gpu T4 data.max_length=512"),
        ("sweep run.yaml --beta 0.1,0.2", "sweep run.yaml preference.beta=0.1,0.2"),
    ],
)
def test_a_setting_written_as_a_flag_is_named_with_the_whole_command(words: str, command: str):
    assert f"settings are written without dashes, behind the file: `wishbone {command}`" in said(words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train --config run.yaml", "the file is written without it: `wishbone train run.yaml`"),
        ("train run.yaml --dryrun", "did you mean --dry-run?"),
        ("train run.yaml --load_in_4bit", "as a setting, without dashes: did you mean model.quantization?"),
        ("train", "it needs CONFIG.yaml, and nothing was given; for example `wishbone train run.yaml"),
        (
            "plan run.yaml --pairs 1k",
            "'1k' is not accepted. Write 1000 or 1024. It takes a whole number; for example",
        ),
        ("plan run.yaml --gpu-memory-gib=8GB", "'8GB' is not accepted. Write 8. It takes a number; for example"),
        ("plan run.yaml --gpus two", "'two' is not accepted. It takes a whole number; for example"),
        ("settings.json", "did you mean `wishbone train settings.json`?"),
        ("train run.yaml --gpus", "--gpus needs a value behind it"),
        ("init --dataset pairs.jsonl", "did you mean --data?"),
        ("init pairs.jsonl --data pairs.jsonl", "are both given"),
        ("eval runs/mine", "it needs RUN... and DATA, and only 'runs/mine' was given; for example `wishbone eval"),
        ("eval pairs.jsonl runs/mine", "is a run, and the pairs come last"),
        ("export runs/mine x.gguf", "it takes no further word, and 'x.gguf' was given; for example `wishbone export"),
        ("trian run.yaml", "did you mean `wishbone train run.yaml`?"),
        ("merge runs/mine", "did you mean `wishbone export runs/mine`?"),
        ("serve runs/mine", "did you mean `wishbone export runs/mine --vllm`?"),
        ("run.yaml", "did you mean `wishbone train run.yaml`?"),
        ("pairs.jsonl", "did you mean `wishbone init pairs.jsonl --output run.yaml`?"),
        ("runs/mine", "did you mean `wishbone report runs/mine`?"),
        ("zzz", "the commands are init, check, plan, train"),
        ("train pairs.jsonl", "holds data, and a run's settings are a YAML file; `wishbone init pairs.jsonl --output"),
        ("plan pairs.jsonl", "`wishbone init pairs.jsonl --output run.yaml` writes one"),
        ("train runs/mine", "it holds a run: `wishbone train runs/mine/config.yaml --resume` continues it"),
        ("train runs", "it holds runs: `wishbone train runs/mine/config.yaml --resume`"),
        ("train beta=0.2 run.yaml", "it is a setting: name the file first"),
        ("train C:\\me\\run.yaml", "in the Windows Subsystem for Linux it is /mnt/c/me/run.yaml"),
        ("train run.yaml data.train=C:\\me\\pairs.jsonl", "it is /mnt/c/me/pairs.jsonl"),
        ("train run.yaml data.train=https://huggingface.co/datasets/a/b", "write a/b, its name on the hub"),
        ("train run.yaml pairs.jsonl", "to train on these pairs, write 'data.train=pairs.jsonl'"),
        ("train run.yaml run.yaml", "a run has one file"),
        ("train run.yaml training.epochs 3 lr = 1", "write it without spaces: 'training.epochs=3"),
        ("train run.yaml training.epochs 3 lr = 1", "write it without spaces: 'training.learning_rate=1"),
        ("train run.yaml training.epochs", "it has no value; write training.epochs=VALUE"),
        ("sweep run.yaml beta 0.1,0.2", "write it without spaces: 'preference.beta=0.1,0.2"),
        ("train run.yaml --resume", "`wishbone train"),
        ("chat mine", "did you mean 'runs/mine'?"),
        ("report runs/mne", "did you mean 'runs/mine'?"),
        ("report run.yaml", "is a file and no run; name the run directory that `wishbone train` wrote; the latest one"),
        ("report runs/mine/config.yaml", "name the run directory that contains it, 'runs/mine'"),
        ("init https://example.com/p.jsonl", "is an address, and pairs are read from files and the hub; download"),
        ("init pairs.jsonl --output runs", "is a directory; name a file in it"),
        ("init pairs.jsonl --format yml", "Did you mean yaml?"),
    ],
)
@pytest.mark.slow
def test_what_was_meant_is_named(place: Path, words: str, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    assert expected in said(words)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.optimizer=adamw", "Did you mean adamw_torch?"),
        ("training.optimizer=lion", "Did you mean lion_32bit?"),
        ("model.dtype=fp16", "Did you mean float16?"),
        ("model.quantization=4bit", "Did you mean nf4?"),
        ("model.quantization=8", "Did you mean int8? It rounds rotated rows and is not LLM.int8"),
        ("data.eval_fraction=10%", "Write 0.1. "),
        ("data.eval_fraction=5", "5 % is 0.05. "),
        ("training.learning_rate=0,00001", "Write 0.00001. "),
        ("training.learning_rate=[1e-5,2e-5]", "Write one value, without brackets. "),
        ("training.max_steps=1000.0", "Write 1000. "),
        ("training.max_steps=1_000", "Write 1000. "),
        ("data.max_length=2k", "Write 2000 or 2048. "),
        ("data.max_length=4,096", "Write 4096. "),
        ("data.max_length=none", "Write null for none. "),
        ("training.token_budget=16K", "Write 16000 or 16384. "),
        ("training.learning_rate=1x10^-5", "Write 1e-5. "),
        ("training.learning_rate=5e−6", "Write 5e-6. "),
        ("data.eval_fraction=1/20", "Write 0.05. "),
        ("training.guard=yes", "Did you mean report? "),
        ("training.guard=no", "Did you mean off? "),
        ("model.quantization=false", "Did you mean none? "),
        ("model.trust_remote_code=yes", "Write true. "),
        ("output.report_to=false", "Write [] for none. "),
        ("preference.loss=sigmoid,sft", "'[sigmoid,sft]'"),
        ("preference.loss=kto", "bco_pair is the nearest"),
        ("adapter.target_modules=q_proj", "Write a list in brackets, in quotes on a command line: '[q_proj]'"),
        ("adapter.target_modules=all_linear", "Did you mean all-linear?"),
        ("output.report_to=none", "Write [] for none. "),
        ("output.report_to=tensorbord", "wishbone: output.report_to[0]"),
        ("data.truncation=left", "Did you mean keep_end?"),
        ("model=org/m", "'org/m' is not a section; did you mean model.name? Or write its keys below it"),
        ("lora.r=8", "lora (override 'lora.r=8'): no such section; did you mean adapter.rank?"),
        ("dpo.beta=1", "did you mean preference.beta?"),
    ],
)
@pytest.mark.slow
def test_a_value_in_other_words_is_understood(
    place: Path, override: str, expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    assert expected in said(f"train run.yaml {override}")


def test_pairs_that_are_not_here_are_refused_for_this_machine(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    message = said("init pair.jsonl --output new.yaml")
    assert "--data: pair.jsonl is not here; similar: pairs.jsonl; correct the path" in message
    assert not (place / "new.yaml").exists()


def test_help_and_version_are_commands_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["help"]).stdout == run(app, ["--help"]).stdout != ""
    train = run(app, ["train", "--help"]).stdout
    assert "--dry-run" in train
    assert run(app, ["help", "train"]).stdout == run(app, ["train", "help"]).stdout == train
    assert run(app, ["version"]).stdout == run(app, ["-V"]).stdout == f"wishbone {__version__}\n"
