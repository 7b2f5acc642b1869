"""Options of the training loop, one by one, beside TRL: the same losses, names and weights, on Wishbone's step."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from peft import get_peft_model
from tiny import tiny_tokenizer
from transformers import TrainerCallback

from trainer.preference_runs import chat_pairs, losses, model_for
from trainer.side_by_side import assert_on_step, assert_same, learned, lora, trained, trainer, trainers
from wishbone import DPOConfig, DPOTrainer
from wishbone.trainer.non_finite import NonFiniteError

pytestmark = pytest.mark.long

OF_BITSANDBYTES = ["lion_32bit", "adamw_8bit", "paged_adamw_8bit", "ademamix"]
OPTIMIZERS = ["adafactor", "sgd", "adagrad", "rmsprop", "adamw_torch_fused", *OF_BITSANDBYTES]


def check(folder: Path, options: dict[str, Any], **makers: Any) -> tuple[Any, DPOTrainer]:
    theirs, ours = trained(folder, options, **makers)
    assert_on_step(ours)
    assert_same(theirs, ours)
    return theirs, ours


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(tmp_path: Path, optimizer: str) -> None:
    if optimizer in OF_BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    check(tmp_path, {"optim": optimizer})


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"max_grad_norm": 0.0},
        {"weight_decay": 0.3, "adam_beta1": 0.5, "adam_beta2": 0.9, "adam_epsilon": 1e-6},
        {"warmup_steps": 2, "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}},
        {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 3, "dataloader_drop_last": True},
        {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
        {"logging_first_step": True, "logging_steps": 3},
        {"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1},
        {"accelerator_config": {"split_batches": True, "gradient_accumulation_kwargs": {"sync_each_batch": True}}},
        {"pad_to_multiple_of": 16},
        {"padding_free": True},
        {"pad_token": "<|im_start|>"},
        {"max_length": None},
        {"dataset_num_proc": 2},
        {"dataloader_num_workers": 1},
        {"train_sampling_strategy": "sequential"},
        {"data_seed": 11},
        {"full_determinism": True},
        {"fp16": True},
        {"debug": "underflow_overflow"},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_one_option(tmp_path: Path, options: dict[str, Any]) -> None:
    try:
        theirs, ours = check(tmp_path, options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert ours.processing_class.pad_token == theirs.processing_class.pad_token
    assert ours.model.config.pad_token_id == theirs.model.config.pad_token_id


def test_options_that_change_no_number(tmp_path: Path) -> None:
    inert = {
        "torch_empty_cache_steps": 1,
        "average_tokens_across_devices": False,
        "use_cache": True,
        "label_names": ["labels"],
        "remove_unused_columns": False,
        "length_column_name": "length",
        "skip_memory_metrics": False,
        "ddp_find_unused_parameters": True,
        "dataloader_prefetch_factor": 3,
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "ref_model_mixup_alpha": 0.1,
        "ref_model_sync_steps": 1,
        "gradient_checkpointing": True,
        "logging_nan_inf_filter": False,
        "disable_dropout": False,
    }
    check(tmp_path, inert)


@pytest.mark.parametrize("filtered", [True, False])
def test_losses_that_are_not_finite_are_logged_as_trl_logs_them(tmp_path: Path, filtered: bool) -> None:
    options = {
        "learning_rate": 1e30,  # all is well in the first step alone
        "logging_steps": 3,
        "max_steps": 8,
        "gradient_accumulation_steps": 1,
        "logging_nan_inf_filter": filtered,
    }
    theirs, ours = trainers(tmp_path, options)
    theirs.train()
    ours.args.stop_on_non_finite = False
    ours.train()
    assert ours.args.logging_nan_inf_filter is filtered
    assert len(losses(theirs)) == 2 and losses(ours) == pytest.approx(losses(theirs), rel=1e-5, nan_ok=True)
    assert math.isfinite(losses(ours)[0]) is filtered
    ends = [trainer.state.log_history[-1]["train_loss"] for trainer in (theirs, ours)]
    assert ends[1] == pytest.approx(ends[0], rel=1e-5, nan_ok=True) and math.isfinite(ends[1]) is filtered


def test_training_stops_before_a_loss_that_is_not_finite_moves_a_weight(tmp_path: Path) -> None:
    ours = trainer("ours", tmp_path, {"learning_rate": 1e30, "max_steps": 8, "gradient_accumulation_steps": 1})
    with pytest.raises(NonFiniteError, match=r"of step \d is not finite"):
        ours.train()
    assert 0 < ours.state.global_step < 8
    assert learned(ours).isfinite().all()


@pytest.mark.parametrize(("kind", "padded"), [("all", True), (True, True), ("non_padding", False)])
def test_input_tokens_are_counted_as_trl_counts_them(tmp_path: Path, kind: Any, padded: bool) -> None:
    theirs, ours = check(tmp_path, {"include_num_input_tokens_seen": kind})
    assert ours.state.num_input_tokens_seen == theirs.state.num_input_tokens_seen > 0
    assert (ours.state.num_input_tokens_seen > ours.trained_tokens) == padded
    assert padded or ours.state.num_input_tokens_seen == ours.trained_tokens


def test_cleared_caches_are_as_many_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []
    monkeypatch.setattr("wishbone.trainer.stepped_trainer.clear_device_cache", lambda: cleared.append(1))
    ours = trainer("ours", tmp_path, {"torch_empty_cache_steps": 2, "max_steps": 5})
    ours.train()
    assert len(cleared) == 3  # at steps 0, 2 and 4


class StopWithin(TrainerCallback):  # type: ignore[misc]
    """Ends an epoch or the training, once, after one batch of the second optimizer step."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1 and self.what:
            setattr(control, self.what, True)
            self.what = ""


def test_an_epoch_that_ends_within_a_step(tmp_path: Path) -> None:
    options = {"max_steps": 6, "gradient_accumulation_steps": 3, "logging_steps": 1}
    theirs, ours = trained(tmp_path, options, further=lambda: {"callbacks": [StopWithin("should_epoch_stop")]})
    assert_same(theirs, ours)
    assert len(losses(ours)) == 4


def test_a_second_training_starts_anew(tmp_path: Path) -> None:
    theirs, ours = trainers(tmp_path, {}, further=lambda: {"callbacks": [StopWithin("should_training_stop")]})
    for run in (theirs, ours):
        run.train()
        assert len(losses(run)) == 1
        run.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4)
    assert (learned(ours) - learned(theirs)).norm() <= 3e-4 * learned(theirs).norm()


class Memory:
    """A device that holds a limited number of tokens at a time: the model's embedding runs out of it."""

    def __init__(self, run: Any, tokens: int) -> None:
        self.refused = 0
        self.tokens = tokens
        run.model.get_input_embeddings().register_forward_pre_hook(self)

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled() and inputs[0].numel() > self.tokens:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_auto_find_batch_size_makes_rows_smaller_and_changes_no_result(tmp_path: Path) -> None:
    plenty = trainer("ours", tmp_path, {"per_device_train_batch_size": 4})
    plenty.train()
    theirs, ours = trainers(tmp_path, {"auto_find_batch_size": True, "per_device_train_batch_size": 4})
    needed = max(pair.row_tokens for batch in ours.get_train_dataloader() for pair in batch["pairs"])
    memory = Memory(ours, needed + 20)
    ours.train()
    assert memory.refused > 0
    assert ours.execution.token_budget <= needed + 20
    assert ours._train_batch_size == 4
    assert losses(ours) == pytest.approx(losses(plenty), rel=1e-5)
    assert (learned(ours) - learned(plenty)).norm() <= 1e-4 * learned(plenty).norm()
    names = {"rewards/chosen", "logps/rejected", "entropy", "mean_token_accuracy"}
    for mine, other in zip(ours.state.log_history[:-1], plenty.state.log_history, strict=False):
        assert {n: mine[n] for n in names} == pytest.approx({n: other[n] for n in names}, rel=1e-3, abs=1e-5)
    with pytest.raises(RuntimeError, match="No executable batch size found"):
        Memory(ours, needed // 2)
        ours.train()
    shrunk = Memory(theirs, 2 * 2 * needed)
    theirs.train()
    assert shrunk.refused > 0 and theirs._train_batch_size < 4  # TRL's run is another run then


def test_a_pair_that_does_not_fit_alone_ends_the_run(tmp_path: Path) -> None:
    ours = trainer("ours", tmp_path)
    Memory(ours, 20)
    with pytest.raises(torch.OutOfMemoryError):
        ours.train()


def test_layers_are_checkpointed_as_gradient_checkpointing_kwargs_say(tmp_path: Path) -> None:
    theirs, _ = trained(tmp_path / "all")
    own = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"every_n_layers": 2}}
    ours = trainer("ours", tmp_path / "some", own)
    ours.train()  # TRL itself hands every_n_layers to torch when it switches checkpointing on again, and fails
    layers = ours.model.get_base_model().model.layers
    assert [layer.gradient_checkpointing for layer in layers] == [True, False]
    assert_same(theirs, ours)


def test_optimizers_given_by_the_user(tmp_path: Path) -> None:
    results = []
    for run in trainers(tmp_path):
        optimizer = torch.optim.SGD([p for p in run.model.parameters() if p.requires_grad], lr=0.5)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        run.optimizer, run.lr_scheduler = optimizer, schedule
        run.train()
        results.append(run)
    assert_same(*results)
    assert [entry["learning_rate"] for entry in results[1].state.log_history[:3]] == [0.5, 0.25, 0.125]


def test_optimizers_argument(tmp_path: Path) -> None:
    model = get_peft_model(model_for(tiny_tokenizer()), lora())
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.25)
    given = {"optimizers": (optimizer, None), "peft_config": None}
    ours = trainer("ours", tmp_path, model=lambda: model, further=lambda: given)
    ours.train()
    assert ours.optimizer.optimizer is optimizer
    assert ours.state.log_history[0]["learning_rate"] == 0.25


def test_callbacks_see_every_event_of_trl(tmp_path: Path) -> None:
    class Seen(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.events: list[str] = []

        def __getattribute__(self, name: str) -> Any:
            if name.startswith("on_"):
                return lambda *args, **kwargs: self.events.append(name)
            return super().__getattribute__(name)

    seen = [Seen(), Seen()]
    given = iter(seen)
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trained(tmp_path, options, further=lambda: {"callbacks": [next(given)], "eval_dataset": chat_pairs(4, seed=1)})
    assert seen[0].events == seen[1].events
    assert {"on_substep_end", "on_pre_optimizer_step", "on_evaluate", "on_save"} <= set(seen[1].events)


def test_defaults_are_those_of_trl(tmp_path: Path) -> None:
    theirs, ours = trl.DPOConfig(str(tmp_path), use_cpu=True), DPOConfig(str(tmp_path), use_cpu=True)
    for option in fields(trl.DPOConfig):
        if option.name != "accelerator_config":
            assert getattr(ours, option.name) == getattr(theirs, option.name), option.name
