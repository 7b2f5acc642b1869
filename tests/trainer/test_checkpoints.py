"""The drop-in trainer: checkpoints that survive a kill and damage, and runs that continue as if nothing had been."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from trainer.preference_runs import adapter, arguments, chat_pairs, losses, model_for
from wishbone import DPOConfig, DPOTrainer
from wishbone.config.run_directory import checkpoints_in
from wishbone.errors import RequestError
from wishbone.trainer.checkpoint_files import damage, publish
from wishbone.trainer.checkpointing import CheckpointNotWritten, _is_of_the_disk
from wishbone.trainer.fingerprint import read_fingerprint

STEPS: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "lr_scheduler_type": "constant"}


class At(TrainerCallback):  # type: ignore[misc]
    """Stops the run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


def trainer(
    folder: Path,
    *callbacks: TrainerCallback,
    pairs: Dataset | None = None,
    seed: int = 0,
    rank: int = 4,
    **options: Any,
) -> DPOTrainer:
    tokenizer = tiny_tokenizer()
    return DPOTrainer(
        tiny_model("llama", seed=seed, vocab_size=len(tokenizer)),
        args=DPOConfig(**arguments(folder, **STEPS | options)),
        train_dataset=pairs or chat_pairs(40),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=rank, target_modules=["q_proj"], lora_dropout=0.0),
        callbacks=list(callbacks),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> DPOTrainer:
    """A run of six steps that nothing disturbed."""
    run = trainer(tmp_path_factory.mktemp("whole"))
    run.train()
    return run


def token_counts(run: DPOTrainer) -> list[float]:
    """`num_tokens` of every line of the log that has it."""
    return [entry["num_tokens"] for entry in run.state.log_history if "num_tokens" in entry]


def stopped(folder: Path, **options: Any) -> None:
    """The first four of six steps, with checkpoints after 2 and 4."""
    trainer(folder, At(4), **options).train()


def test_checkpoints_have_manifests_and_nothing_else_is_left(whole: DPOTrainer) -> None:
    folder = Path(whole.args.output_dir)
    assert [path.name for path in checkpoints_in(folder)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert all((path / "manifest.json").exists() and damage(path) is None for path in checkpoints_in(folder))
    assert not (folder / ".saving").exists()


def test_the_newest_sound_one_is_continued_bit_by_bit(
    tmp_path: Path, whole: DPOTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path)
    optimizer = tmp_path / "checkpoint-4" / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    resumed = trainer(tmp_path)
    with caplog.at_level(logging.WARNING, "wishbone"):
        resumed.train(resume_from_checkpoint=True)
    (line,) = [text for text in caplog.messages if "checkpoint" in text]
    assert "checkpoint-4 is damaged and was skipped: optimizer.pt changed" in line
    assert torch.equal(adapter(resumed), adapter(whole)) and losses(resumed) == losses(whole)
    assert token_counts(resumed) == token_counts(whole)
    assert 0 < resumed.trained_tokens < whole.trained_tokens == token_counts(whole)[-1]
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.raises(RequestError, match=r"checkpoint-4 is damaged \(optimizer.pt.*checkpoint-6 is sound"):
        resumed.checkpoint_to_resume(str(tmp_path / "checkpoint-4"))


def test_a_process_killed_while_it_writes_leaves_the_older_one(tmp_path: Path, whole: DPOTrainer) -> None:
    class Killer(DPOTrainer):
        def _save_rng_state(self, output_dir: str) -> None:
            if self.state.global_step == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            super()._save_rng_state(output_dir)

    child = os.fork()
    if child == 0:
        run = trainer(tmp_path)
        run.__class__ = Killer
        run.train()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2"]
    assert list((tmp_path / ".saving" / "checkpoint-4").iterdir())
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(adapter(resumed), adapter(whole))
    assert not (tmp_path / ".saving").exists()


def test_all_steps_are_done_once(tmp_path: Path, whole: DPOTrainer) -> None:
    """Continued from the checkpoint after the last step, in the middle of an epoch: no step is one too many."""
    stopped(tmp_path, max_steps=4)
    (tmp_path / ".saving" / "checkpoint-4").mkdir(parents=True)  # killed between the rename and the end of saving
    resumed = trainer(tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert not (tmp_path / ".saving").exists()
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(adapter(resumed), adapter(whole))


def test_saving_and_logging_may_change(tmp_path: Path, whole: DPOTrainer) -> None:
    stopped(tmp_path)
    resumed = trainer(tmp_path, save_steps=1, logging_steps=2, token_budget=64)
    resumed.train(resume_from_checkpoint=True)
    assert [path.name for path in checkpoints_in(tmp_path)] == [f"checkpoint-{n}" for n in (2, 4, 5, 6)]
    assert [line["step"] for line in resumed.state.log_history if "loss" in line] == [1, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"learning_rate": 2e-2}, "learning_rate was 0.01 and is 0.02"),
        ({"beta": 0.2}, "beta was 0.1 and is 0.2"),
        ({"loss_type": "ipo"}, 'loss_type was ["sigmoid"] and is ["ipo"]'),
        ({"args_seed": 4}, "seed was 3 and is 4"),
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size was 2 and is 1"),
        ({"gradient_accumulation_steps": 2}, "micro-batches in a step was 4 and is 2"),
        ({"optim": "sgd"}, "optim was adamw_torch_fused and is sgd"),
        ({"max_length": 100}, "max_length was 128 and is 100"),
        ({"rank": 8}, "adapter: r was 4 and is 8"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config.split_batches was false and is true"),
        ({"seed": 1}, "model: weights was SHA-256"),
        ({"pairs": chat_pairs(38)}, "data: training pairs was 40 rows, SHA-256"),
        ({"pairs": chat_pairs(40).shuffle(seed=1)}, "data: training pairs was 40 rows, SHA-256"),
    ],
)
def test_another_run_is_refused(whole: DPOTrainer, changed: dict[str, Any], line: str) -> None:
    options = {"seed" if name == "args_seed" else name: value for name, value in changed.items()}
    if "args_seed" in changed:
        other = trainer(Path(whole.args.output_dir))
        other.args.seed = options["seed"]
    else:
        other = trainer(Path(whole.args.output_dir), **options)
    with pytest.raises(RequestError) as refused:
        other.train(resume_from_checkpoint=True)
    assert f"  - {line}" in str(refused.value)
    assert str(refused.value).count("  - ") == 1
    assert "may change more steps or epochs, logging" in str(refused.value)


def test_another_optimizer_that_a_script_made_is_refused(whole: DPOTrainer) -> None:
    other = trainer(Path(whole.args.output_dir))
    other.optimizer = torch.optim.SGD([weight for weight in other.model.parameters() if weight.requires_grad], lr=0.1)
    with pytest.raises(RequestError, match=r"given: optimizer was null and is torch.optim.sgd.SGD"):
        other.train(resume_from_checkpoint=True)


def test_all_weights_and_the_reference_are_part_of_it(tmp_path: Path) -> None:
    def full(reference: int, policy: int = 0) -> DPOTrainer:
        tokenizer = tiny_tokenizer()
        models = [tiny_model("llama", seed=seed, vocab_size=len(tokenizer)) for seed in (policy, reference)]
        options = arguments(tmp_path, **STEPS | {"max_steps": 1})
        return DPOTrainer(*models, args=DPOConfig(**options), train_dataset=chat_pairs(10), processing_class=tokenizer)

    full(1).train()
    assert full(1).checkpoint_to_resume().name == "checkpoint-1"
    with pytest.raises(RequestError, match="reference: weights was SHA-256"):
        full(2).checkpoint_to_resume()
    with pytest.raises(RequestError, match="model: weights was SHA-256"):
        full(1, policy=3).checkpoint_to_resume()


def test_other_versions_are_told_and_not_refused(
    tmp_path: Path, whole: DPOTrainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wishbone.trainer.fingerprint.__version__", "9.9")
    with caplog.at_level(logging.WARNING, "wishbone"):
        trainer(Path(whole.args.output_dir)).checkpoint_to_resume()
    assert any("is now 9.9: results may differ in rounding" in text for text in caplog.messages)


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is none"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(RequestError, match=r"no directory .*checkpoint-9; checkpoints beside it: none"):
        trainer(tmp_path).train(resume_from_checkpoint=tmp_path / "checkpoint-9")


def test_another_collator_that_a_script_gave_is_refused(whole: DPOTrainer) -> None:
    other = trainer(Path(whole.args.output_dir))
    other.given_collator = dict
    with pytest.raises(RequestError, match=r"given: data collator was null and is builtins.type"):
        other.train(resume_from_checkpoint=True)


def test_fewer_steps_than_were_done_are_refused_and_another_schedule_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, max_steps=2, lr_scheduler_type="linear").train()
    with pytest.raises(RequestError, match="written after step 2, and the run is to end after step 1"):
        trainer(tmp_path, max_steps=1, lr_scheduler_type="linear").train(resume_from_checkpoint=True)
    trainer(tmp_path, max_steps=2, lr_scheduler_type="linear").train(resume_from_checkpoint=True)
    assert "schedule" not in caplog.text
    trainer(tmp_path, max_steps=3, lr_scheduler_type="linear").train(resume_from_checkpoint=True)
    assert "from step 3 on, the learning rate follows the linear schedule" in caplog.text


def test_weights_without_the_state_of_the_optimizer_are_not_continued(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=2, save_only_model=True).train()
    with pytest.raises(RequestError, match=r"no state of the optimizer \(save_only_model\)"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_the_best_checkpoint_is_named_by_its_place_and_kept(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_rewards/margins", "greater_is_better": False}
    run = DPOTrainer(
        model_for(tokenizer),
        args=DPOConfig(**arguments(tmp_path, **STEPS | options | best | {"max_steps": 3})),
        train_dataset=chat_pairs(40),
        eval_dataset=chat_pairs(8, seed=1),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    run.train()
    best_one = tmp_path / f"checkpoint-{run.state.best_global_step}"
    assert run.state.best_global_step < 3, "an older one is the best, so that it is a question whether it is kept"
    assert run.state.best_model_checkpoint == str(best_one)
    assert ".saving" not in (best_one / "trainer_state.json").read_text()
    assert damage(best_one) is None


class FullDisk(TrainerCallback):  # type: ignore[misc]
    """From a step on no file may grow beyond some bytes, as on a disk that has so many left for it."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [0, 1000, 5000])
def test_a_full_disk_is_told_and_the_last_checkpoint_is_whole(tmp_path: Path, whole: DPOTrainer, size: int) -> None:
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error instead of the end
    run = trainer(tmp_path, FullDisk(4, size), reference_store="off", logging_strategy="no")
    try:
        with pytest.raises(CheckpointNotWritten, match=r"checkpoint-4 could not be written .*checkpoint-2 is whole"):
            run.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2"]
    assert damage(tmp_path / "checkpoint-2") is None
    assert not (tmp_path / ".saving").exists()


def test_what_pytorch_says_of_a_full_disk_is_recognized() -> None:
    """The texts that torch 2.13 gave on a full file system, and one of a full GPU."""
    assert _is_of_the_disk(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"))
    assert _is_of_the_disk(RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"))
    assert not _is_of_the_disk(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))


@pytest.mark.parametrize("told", ["writev [127.0.0.1]:3 Broken pipe", "write error: Connection reset by peer", None])
def test_what_another_process_did_is_not_taken_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str | None
) -> None:
    """Another process is gone, or the first one failed and removed what was written: its error is the one to read."""
    run = trainer(tmp_path, logging_strategy="no")

    def failing(written: Path, folder: Path) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        if told is not None:
            raise RuntimeError(told)
        shutil.rmtree(written.parent)
        monkeypatch.setattr(run, "is_local_process_zero", lambda: False)
        (written / "execution-1.json").touch()

    monkeypatch.setattr(run, "write_extras", failing)
    with pytest.raises(
        RuntimeError, match="another process of the run is gone" if told is None else told[-8:]
    ) as raised:
        run.train()
    assert not isinstance(raised.value, CheckpointNotWritten)


def test_saves_by_the_clock_are_replaced_by_the_next(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_strategy="steps", save_steps=5, save_minutes=1e-9)
    run._timed.saved = lambda seconds: type(run._timed).saved(run._timed, 0.0)  # as if saving cost nothing
    run.train()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-5", "checkpoint-6"]
    assert read_fingerprint(tmp_path / "checkpoint-5") is not None


class Sets(TrainerCallback):  # type: ignore[misc]
    """Changes something of a run after its first step."""

    def __init__(self) -> None:
        self.change: Any = None

    def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
        if state.global_step == 1:
            self.change(state)


def test_rows_of_a_continued_run_are_as_long_as_they_were(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As after memory ran out: rows of another length round differently."""
    shorter = Sets()
    first = trainer(tmp_path, shorter, max_steps=2)
    shorter.change = lambda state: setattr(first.loop, "execution", replace(first.execution, token_budget=48))
    first.train()
    again = trainer(tmp_path, max_steps=4)
    again.train(resume_from_checkpoint=True)
    assert again.execution.token_budget == 48
    other = trainer(tmp_path, max_steps=6, token_budget=96)
    with caplog.at_level(logging.WARNING, "wishbone"):
        other.train(resume_from_checkpoint=True)
    assert other.execution.token_budget == 96
    assert "Rows are measured again, because token_budget was auto and is 96" in caplog.text


def test_the_state_is_json_where_a_norm_was_infinite(tmp_path: Path) -> None:
    """As with float16, whose scaler skips such steps."""
    infinite = Sets()
    infinite.change = lambda state: state.log_history.append({"step": 1, "grad_norm": math.inf, "loss": math.nan})
    run = trainer(tmp_path, infinite, max_steps=2)
    run.train()
    run.save_state()
    for file in (tmp_path / "checkpoint-2" / "trainer_state.json", tmp_path / "trainer_state.json"):
        content = json.loads(file.read_text(), parse_constant=pytest.fail)
        assert {"step": 1, "grad_norm": None, "loss": None} in content["log_history"]
    trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=True)


def test_a_sound_checkpoint_with_weights_that_are_not_finite_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=4).train()
    checkpoint = tmp_path / "checkpoint-4"
    file = checkpoint / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values()))[0, 0] = math.nan
    save_file(weights, file, metadata={"format": "pt"})
    publish(checkpoint.rename(tmp_path / "written"), checkpoint)
    assert damage(checkpoint) is None
    with pytest.raises(RequestError, match=r"checkpoint-4 holds weights that are NaN or infinite .* delete this"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    shutil.rmtree(checkpoint)
    trainer(tmp_path).train(resume_from_checkpoint=True)
