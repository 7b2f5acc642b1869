"""Options that TRL and transformers once had: the error says what replaces them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer

from trainer.preference_runs import arguments, chat_pairs, model_for
from wishbone import DPOConfig, DPOTrainer
from wishbone.config.former_options import SUCCESSORS
from wishbone.config.load import parse_config
from wishbone.errors import RequestError
from wishbone.trainer.ignored_options import name_options_without_effect


def test_all_of_them_are_named_at_once_with_their_successors(tmp_path: Path) -> None:
    former = {"group_by_length": True, "logging_dir": "logs", "rpo_alpha": 1.0, "reference_free": True, "betta": 0.1}
    with pytest.raises(RequestError) as refusal:
        DPOConfig(**arguments(tmp_path, **former))
    said = "\n".join(refusal.value.problems)
    assert len(refusal.value.problems) == len(former)
    for words in ("train_sampling_strategy='group_by_length'", "TENSORBOARD_LOGGING_DIR", "['sigmoid', 'sft']"):
        assert words in said
    assert "near: beta" in said


@pytest.mark.parametrize("name", sorted(SUCCESSORS.keys() - {option.name for option in fields(DPOConfig)}))
def test_no_option_ends_in_a_bare_type_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=f"no option '{name}' any more"):
        DPOConfig(**arguments(tmp_path, **{name: 1}))


def test_the_trainer_names_them_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"processing_class": tiny_tokenizer(), "rpo_alpha": 1.0, "learning_rate": 1e-5}
    with pytest.raises(RequestError) as refusal:
        DPOTrainer(model_for(tiny_tokenizer()), train_dataset=chat_pairs(4), **options)
    assert "['sigmoid', 'sft']" in str(refusal.value) and "an option of DPOConfig" in str(refusal.value)


def test_a_yaml_file_with_them_says_which_key_to_set() -> None:
    text = "model: {name: m}\ndata: {train: p.jsonl}\npreference: {rpo_alpha: 1.0}\ntraining: {group_by_length: true}\n"
    with pytest.raises(RequestError) as refusal:
        parse_config(text)
    assert "preference.loss: [sigmoid, sft]" in str(refusal.value)
    assert "rows are packed by length in any case" in str(refusal.value)
    text = "model: {name: m, load_in_4bit: true}\ndata: {train: p.jsonl, shuffle: true}\ntraining: {warmup_steps: 10}\n"
    with pytest.raises(RequestError) as refusal:
        parse_config(text)
    for words in ("model.quantization", "shuffled in any case", "training.warmup_ratio is the share"):
        assert words in str(refusal.value)


@pytest.mark.parametrize("steps", [4, 7])
def test_the_rate_rises_over_all_steps(tmp_path: Path, steps: int) -> None:
    config = DPOConfig(**arguments(tmp_path, max_steps=steps, warmup_ratio=1.0))
    assert config.get_warmup_steps(steps) == steps
    for wrong, said in ((1.5, "must be a share from 0 to 1"), ("0.1", "is text; give a number")):
        with pytest.raises(RequestError, match=said):
            DPOConfig(**arguments(tmp_path, warmup_ratio=wrong))


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("loss_type", "kto_pair", "bco_pair is the nearest"),
        ("loss_type", ["sigmoid", "dpo"], "it is called sigmoid"),
        ("optim", "adamw_hf", "it is called adamw_torch"),
    ],
)
def test_values_that_were_renamed_name_their_successor(tmp_path: Path, option: str, value: Any, instead: str) -> None:
    with pytest.raises(RequestError, match=instead):
        DPOConfig(**arguments(tmp_path, **{option: value}))


def refusal(tmp_path: Path, model: Any = "no/such-model", **options: Any) -> str:
    """What the trainer says before it loads the model, which is not there."""
    given = {name: options.pop(name) for name in ("train_dataset", "eval_dataset") if name in options}
    with pytest.raises(RequestError) as refused:
        config = DPOConfig(**arguments(tmp_path, **options))
        DPOTrainer(model, args=config, processing_class=tiny_tokenizer(), **{"train_dataset": chat_pairs(4)} | given)
    return str(refused.value)


def test_numbers_that_are_text_are_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, learning_rate="5e-6", beta="0.1")
    assert "learning_rate '5e-6' is text" in said and "beta '0.1' is text" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"report_to": "foo"}, "report_to names 'foo', which is no tracker"),
        ({"loss_type": "ipo2"}, "did you mean 'ipo'"),
        ({"f_divergence_type": "kl2"}, "f_divergence 'kl2' is not known"),
        ({"sync_ref_model": True, "ref_model_sync_steps": 0}, "ref_model_sync_steps 0 must be 1 or more"),
        ({"beta": -0.1}, "beta -0.1 must be 0 or more"),
        ({"eval_dataset": {}}, "a dict without data sets"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(tmp_path: Path, options: Any, said: str) -> None:
    assert said in refusal(tmp_path, **options)


def test_a_stream_of_which_no_pair_is_left_is_no_run(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    trainer = DPOTrainer(
        model_for(tokenizer),
        args=DPOConfig(**arguments(tmp_path, max_steps=2, max_length=1)),
        train_dataset=chat_pairs(4).to_iterable_dataset(),
        processing_class=tokenizer,
    )
    with pytest.raises(RequestError, match="the stream gave no pair"):
        trainer.train()


def test_values_out_of_range_are_refused_at_once_by_name(tmp_path: Path) -> None:
    wrong = {
        "ld_alpha": 2.0,
        "ref_model_mixup_alpha": -0.5,
        "per_device_train_batch_size": 0,
        "gradient_accumulation_steps": 0,
        "learning_rate": -1.0,
        "label_smoothing": -0.1,
        "truncation_mode": "middle",
        "beta": float("nan"),
    }
    with pytest.raises(RequestError) as refusal:
        DPOConfig(**arguments(tmp_path, **wrong))
    assert {problem.split()[0] for problem in refusal.value.problems} == wrong.keys()
    with pytest.raises(RequestError, match="max_steps '3' is text"):
        DPOConfig(**arguments(tmp_path, max_steps="3"))


def test_hyperparameters_that_no_loss_reads_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name_options_without_effect(DPOConfig(**arguments(tmp_path, label_smoothing=0.1, simpo_gamma=1.0)))
    assert "label_smoothing=0.1 changes nothing: only" in caplog.text and "simpo_gamma=1" in caplog.text
    caplog.clear()
    name_options_without_effect(DPOConfig(**arguments(tmp_path, label_smoothing=0.1, loss_type=["sigmoid", "robust"])))
    assert not caplog.text


def test_options_that_others_keep_from_being_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unread: dict[str, Any] = {"f_alpha_divergence_coef": 0.7, "ref_model_mixup_alpha": 0.5, "ref_model_sync_steps": 8}
    unread |= {"precompute_ref_batch_size": 2, "guard_steps": 5, "warmup_ratio": 0.2, "warmup_steps": 3}
    unread["lr_scheduler_type"] = "constant"
    name_options_without_effect(DPOConfig(**arguments(tmp_path, **unread)))
    named = [line.split("=")[0] for line in caplog.messages]
    assert named == [name for name in unread if name != "lr_scheduler_type"]
    caplog.clear()
    read = unread | {"f_divergence_type": "alpha_divergence", "sync_ref_model": True, "guard": "report"}
    read |= {"precompute_ref_log_probs": True, "lr_scheduler_type": "linear", "warmup_steps": 0}
    name_options_without_effect(DPOConfig(**arguments(tmp_path, **read)))
    assert not caplog.text


def test_a_run_without_a_step_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = DPOConfig(**arguments(tmp_path, max_steps=-1, num_train_epochs=0))
    ours = DPOTrainer(
        model_for(tiny_tokenizer()), args=config, train_dataset=chat_pairs(4), processing_class=tiny_tokenizer()
    )
    ours.train()
    assert ours.state.global_step == 0
    assert "The run takes no step, so nothing is trained" in caplog.text


def test_a_loss_without_reference_synchronizes_none(tmp_path: Path) -> None:
    """TRL's callback would mix the policy with itself, through the model that stands in for the reference."""
    losses = []
    for more in ({}, {"sync_ref_model": True, "ref_model_sync_steps": 1}):
        torch.manual_seed(0)
        args = DPOConfig(**arguments(tmp_path / str(len(more)), loss_type="simpo", max_steps=2, **more))
        trainer = DPOTrainer(
            model_for(tiny_tokenizer()), args=args, train_dataset=chat_pairs(4), processing_class=tiny_tokenizer()
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
