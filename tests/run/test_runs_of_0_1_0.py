"""What version 0.1.0 wrote can still be used: a run directory is continued, its pickled arguments load.

`written_by_0_1_0/` was written by the code of that version (commit 2aca559; torch 2.13, transformers 5.24, TRL 1.16):

    wishbone train tiny.yaml output.dir=run

with the model, the pairs and the configuration below. It holds the checkpoint after 2 of 4 steps as it was written,
`config.yaml` and `metrics.jsonl`, and the adapter that the whole run ended with.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer, write_tiny_run
from trainer.preference_runs import chat_pairs
from typer.testing import CliRunner

from wishbone import DPOConfig, DPOTrainer
from wishbone.cli import app

OLD = Path(__file__).parent / "written_by_0_1_0"
SAME_TO_ROUNDING = {"rtol": 1e-4, "atol": 1e-6}  # another CPU sums in another order
CONFIG = """\
model: {name: ./model}
data: {train: pairs.jsonl, max_length: 64}
adapter: {rank: 2, target_modules: [q_proj]}
training: {batch_size: 2, gradient_accumulation: 2, max_steps: 4, save_steps: 2, warmup_ratio: 0.5, learning_rate: 0.01}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run directory as it was when the run was stopped after two steps, beside its model, data and configuration"""
    write_tiny_run(tmp_path, CONFIG, pairs=10)
    shutil.copytree(OLD, tmp_path / "run", ignore=shutil.ignore_patterns("adapter_of_*"))
    lines = (OLD / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:2]))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def train(*arguments: str) -> str:
    outcome = CliRunner().invoke(app, ["train", "tiny.yaml", *arguments])
    assert outcome.exit_code == 0, outcome.output
    return outcome.stderr


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_is_continued_as_if_it_had_not_been_stopped(run: Path) -> None:
    messages = train("output.dir=run", "--resume")
    (line,) = [line for line in messages.splitlines() if "cannot be checked" in line]
    assert "no manifest.json" in line and "no fingerprint.json" in line
    for ours, theirs in zip(metrics(run), metrics(OLD), strict=True):
        for line in (ours, theirs):  # wall time, and a count that starts again with a process, as in TRL
            assert line.pop("seconds") > 0 and line.pop("num_tokens") > 0
            line.pop("memory_gib", None)  # which 0.1.0 did not write
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    learned, expected = load_file(run / "adapter" / "adapter_model.safetensors"), load_file(*OLD.glob("adapter_of_*"))
    torch.testing.assert_close(learned, expected, **SAME_TO_ROUNDING)
    stopped = load_file(run / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
    assert not all(torch.allclose(learned[name], stopped[name], **SAME_TO_ROUNDING) for name in learned)


@pytest.mark.slow
def test_a_run_continues_its_optimizer_and_schedule_and_not_only_its_weights(run: Path) -> None:
    """A run that started again from the old adapter would take other steps."""
    path = run / "checkpoints" / "checkpoint-2" / "optimizer.pt"
    optimizer = torch.load(path, weights_only=True)
    for state in optimizer["state"].values():
        state["exp_avg"].zero_()
    torch.save(optimizer, path)
    train("output.dir=run", "--resume")
    learned, expected = load_file(run / "adapter" / "adapter_model.safetensors"), load_file(*OLD.glob("adapter_of_*"))
    assert not all(torch.allclose(learned[name], expected[name], **SAME_TO_ROUNDING) for name in learned)


def test_its_settings_are_compared_with_its_configuration(run: Path) -> None:
    outcome = CliRunner().invoke(app, ["train", "tiny.yaml", "output.dir=run", "--resume", "preference.beta=0.2"])
    assert outcome.exit_code == 2
    assert "preference.beta was 0.1 and is 0.2" in outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "harm"),
    [("optimizer.pt", None), ("optimizer.pt", 300), ("adapter_model.safetensors", 900), ("trainer_state.json", 200)],
)
def test_what_can_be_seen_to_be_damaged_is_not_continued(run: Path, name: str, harm: int | None) -> None:
    """A file that is absent, or that ends too early: such a checkpoint has no manifest."""
    path = run / "checkpoints" / "checkpoint-2" / name
    whole = path.read_bytes()
    path.unlink()
    if harm is not None:
        path.write_bytes(whole[:harm])
    outcome = CliRunner().invoke(app, ["train", "tiny.yaml", "output.dir=run", "--resume"])
    assert outcome.exit_code == 2
    assert f"checkpoint-2 is damaged and was skipped: {name}" in outcome.stderr


def test_pickled_arguments_load_and_train(tmp_path: Path) -> None:
    path = OLD / "checkpoints" / "checkpoint-2" / "training_args.bin"
    assert b"wishbone.training.arguments" in path.read_bytes()
    old = torch.load(path, weights_only=False)
    assert type(old) is DPOConfig
    assert (old.learning_rate, old.beta, old.loss_type, old.max_length) == (0.01, 0.1, ["sigmoid"], 64)
    tokenizer = tiny_tokenizer()
    trainer = DPOTrainer(
        tiny_model("llama", vocab_size=len(tokenizer)),
        args=old.changed({"output_dir": str(tmp_path), "max_steps": 1}),
        train_dataset=chat_pairs(8),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2),
    )
    assert trainer.train().global_step == 1
