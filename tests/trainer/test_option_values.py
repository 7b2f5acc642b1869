"""Values of options that have no meaning are refused by name; what an odd value does is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl import DPOConfig as TRLDPOConfig

from trainer.preference_runs import arguments
from wishbone import DPOConfig
from wishbone.errors import RequestError
from wishbone.trainer.ignored_options import name_options_without_effect, not_reached
from wishbone.trainer.option_values import BOUNDED, _numeric_options, refuse_warmup_without_decay

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("max_steps", None, "leave it out for its default, -1"),
        ("num_train_epochs", None, "leave it out for its default, 3.0"),
        ("max_grad_norm", None, "is no number"),
        ("beta", [0.1, 0.2], "is no number"),
        ("logging_steps", NAN, "is not a finite number"),
        ("max_grad_norm", NAN, "is not a finite number"),
        ("num_train_epochs", INFINITE, "is not a finite number"),
        ("max_steps", 2.5, "must be a whole number"),
        ("save_total_limit", 1.5, "must be a whole number"),
        ("max_length", 12.5, "must be a whole number"),
        ("max_length", 0, "must be 1 or more"),
        ("max_grad_norm", -1.0, "must be 0 or more"),
        ("adam_epsilon", 0, "must be above 0"),
        ("warmup_steps", 1.5, "a whole number of steps"),
        ("seed", -1, "must be from 0"),
        ("data_seed", "1", "is text"),
        ("loss_type", None, "must be the name of a loss"),
        ("loss_weights", 2.0, "must be a list of numbers"),
        ("loss_weights", [NAN], "must be a list of numbers"),
        ("lr_scheduler_kwargs", {"power": 2}, "'linear' does not take"),
        ("lr_scheduler_type", "warmup_stable_decay", "num_decay_steps"),
        ("accelerator_config", {"split": True}, "DPOConfig: "),
        ("train_sampling_strategy", "group_by_lenght", "choose one of random, sequential, group_by_length"),
        ("include_num_input_tokens_seen", "padding", "choose one of no, all, non_padding"),
        ("include_for_metrics", ["inputs", "losses"], "'losses' is not known: choose one of inputs, loss"),
        ("log_level", "warn", "choose one of passive, detail, debug, info, warning"),
        ("torch_compile_mode", "max", "choose one of None, default, reduce-overhead"),
        ("torch_compile_backend", "foo", "choose one of None, no, eager"),
        ("dataloader_multiprocessing_context", "thread", "choose one of None, fork, spawn"),
        ("optim_args", "rank", "must be written name=value"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(tmp_path: Path, option: str, value: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said) as refusal:
        DPOConfig(**{**arguments(tmp_path), "lr_scheduler_type": "linear", option: value})
    assert option.partition("_")[0] in str(refusal.value).lower()


def test_those_of_trls_arguments_are_refused_too(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="max_grad_norm None is no number"):
        DPOConfig.from_arguments(TRLDPOConfig(**arguments(tmp_path, max_grad_norm=None)))


def test_what_trl_takes_is_taken(tmp_path: Path) -> None:
    given = {"max_steps": 1e1, "save_steps": None, "save_strategy": "no", "max_grad_norm": INFINITE, "data_seed": None}
    config = DPOConfig(**{**arguments(tmp_path), **given})
    assert isinstance(config.max_steps, int) and config.max_steps == 10


def test_every_bound_is_that_of_an_option() -> None:
    assert BOUNDED.keys() <= _numeric_options(DPOConfig).keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_train_epochs": 0, "max_steps": -1}, "takes no step"),
        ({"learning_rate": 0}, "nothing is trained"),
        ({"beta": 0}, "no preference is learned"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0]}, "weight of sft in loss_weights is 0"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1, -1]}, "loss is made larger"),
        ({"sync_ref_model": True, "ref_model_mixup_alpha": 0}, "leaves the reference as it was"),
        ({"save_strategy": "steps", "save_steps": 0}, "no checkpoint is written"),
        ({"eval_strategy": "steps", "eval_steps": -1}, "nothing is evaluated"),
        ({"logging_steps": -1}, "only the end is logged"),
        ({"save_total_limit": 0}, "all checkpoints are kept"),
        ({"load_best_model_at_end": True}, "no weights are the best"),
        ({"ld_alpha": 0.5, "loss_type": "simpo"}, "ld_alpha=0.5 changes nothing"),
        ({"optim": "adamw_torch", "optim_args": "momentum=0.9"}, "optim_args=momentum=0.9 changes nothing"),
        ({"optim_target_modules": ["q_proj"]}, "only GaLore and APOLLO read it"),
        ({"loss_type": ["ipo", "sft", "ipo"], "loss_weights": [1, 1, 0.5]}, "names ipo 2 times: it counts 1.5 times"),
        ({"fsdp_config": {"version": 2}}, "fsdp is not set"),
        ({"fsdp": True, "fsdp_config": {"fsdp_offload_params": True}}, "has offload_params, which transformers does"),
    ],
)
def test_what_an_odd_value_does_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], said: str
) -> None:
    name_options_without_effect(DPOConfig(**{**arguments(tmp_path), "save_strategy": "no", **options}))
    assert said in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eval_strategy": "steps", "eval_steps": 100}, "after step 100 of 8"),
        ({"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 9}, "after step 9 of 8"),
        ({"eval_strategy": "steps", "eval_steps": 0.5}, ""),
        ({"warmup_steps": 10, "lr_scheduler_type": "linear"}, "rises over 10 steps"),
        ({"warmup_ratio": 1.0, "lr_scheduler_type": "linear"}, ""),
        ({"warmup_steps": 10, "lr_scheduler_type": "constant"}, ""),
    ],
)
def test_what_lies_behind_the_last_step_is_said(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    found = not_reached(DPOConfig(**{**arguments(tmp_path), **options}), 8)
    assert [said in sentence for sentence in found] == [True] * bool(said)


@pytest.mark.parametrize("warmup", [{"warmup_ratio": 1.0}, {"warmup_steps": 4}])
def test_a_polynomial_schedule_of_warmup_alone_is_refused_before_it_divides_by_zero(
    tmp_path: Path, warmup: dict[str, Any]
) -> None:
    config = DPOConfig(**{**arguments(tmp_path), "lr_scheduler_type": "polynomial", **warmup})
    with pytest.raises(RequestError, match="the warm-up takes all 4 steps"):
        refuse_warmup_without_decay(config, 4)
    refuse_warmup_without_decay(DPOConfig(**{**arguments(tmp_path), "lr_scheduler_type": "linear", **warmup}), 4)
