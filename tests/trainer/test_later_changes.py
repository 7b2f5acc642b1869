"""What a script sets on a trainer after it was constructed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer
from torch import nn
from transformers import TrainerCallback

from trainer.preference_runs import arguments, chat_pairs, losses, model_for
from trainer.side_by_side import assert_on_step, assert_same, lora, trained, trainer, trainers
from wishbone import DPOConfig, DPOTrainer
from wishbone.errors import RequestError


class _Sets(TrainerCallback):
    """Sets an attribute of a trainer after each step: a schedule of beta, say."""

    def __init__(self, **values: list[Any]) -> None:
        self.values = values
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        for name, values in self.values.items():
            setattr(self.trainer, name, values[state.global_step - 1])


@pytest.mark.parametrize(
    "values",
    [
        {"beta": [0.5, 1.0, 2.0]},
        {"loss_types": [["ipo"], ["hinge"], ["hinge"]], "label_smoothing": [0.0, 0.1, 0.1]},
        {"loss_weights": [[3.0], [0.5], [0.5]], "f_divergence_type": ["js_divergence"] * 3},
    ],
)
def test_settings_of_the_loss_are_followed_as_in_trl(tmp_path: Path, values: dict[str, list[Any]]) -> None:
    theirs, ours = trainers(tmp_path, further=lambda: {"callbacks": [_Sets(**values)]})
    for one in (theirs, ours):
        next(c for c in one.callback_handler.callbacks if isinstance(c, _Sets)).trainer = one
        one.train()
    assert_on_step(ours)
    assert_same(theirs, ours)
    rewards = [[log["rewards/margins"] for log in one.state.log_history if "loss" in log] for one in (theirs, ours)]
    assert rewards[1] == pytest.approx(rewards[0], rel=1e-3, abs=1e-4)
    unchanged = trainer("ours", tmp_path)
    unchanged.train()
    assert losses(unchanged)[1:] != pytest.approx(losses(ours)[1:], rel=1e-2)


def _new_model(ours: DPOTrainer) -> None:
    ours.model = ours.model_wrapped = model_for(tiny_tokenizer())


def _attention_dropout(ours: DPOTrainer) -> None:
    for module in ours.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1


def _adapter_dropout(ours: DPOTrainer) -> None:
    for module in ours.model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = nn.Dropout(0.1)


def _trl_collator(ours: DPOTrainer) -> None:
    former = ours.data_collator
    ours.data_collator = lambda rows: former(rows)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda ours: setattr(ours, "compute_loss", lambda *_: None), "trainer.compute_loss was set.*derive a class"),
        (lambda ours: setattr(ours, "_compute_loss", lambda *_: None), "trainer._compute_loss was set"),
        (_trl_collator, "trainer.data_collator was set.*give it to DPOTrainer"),
        (lambda ours: setattr(ours, "ref_model", model_for(tiny_tokenizer())), "trainer.ref_model was set"),
        (_new_model, "trainer.model was replaced"),
        (lambda ours: ours.model.merge_adapter(), "was merged into its base.*unmerge_adapter"),
        (lambda ours: ours.model.base_model.disable_adapter_layers(), "the adapter was switched off"),
        (_attention_dropout, "dropout was switched on after.*disable_dropout=False"),
        (_adapter_dropout, "dropout was switched on after.*disable_dropout=False"),
        (lambda ours: setattr(ours, "model_init", lambda: model_for(tiny_tokenizer())), "trainer.model was replaced"),
        (lambda ours: setattr(ours, "ld_alpha", 0.5), "trainer.ld_alpha was changed.*in DPOConfig"),
        (lambda ours: setattr(ours, "beta", -1.0), "beta -1.0 must be 0 or more"),
        (lambda ours: setattr(ours, "loss_types", ["sigmoid", "sft"]), "loss_weights has 1 values for 2"),
    ],
)
def test_what_the_step_cannot_take_on_ends_the_run(tmp_path: Path, change: Any, refused: str) -> None:
    ours = trainer("ours", tmp_path)
    change(ours)
    with pytest.raises(RequestError, match=refused):
        ours.train()


def test_a_merged_adapter_is_not_measured_against_itself(tmp_path: Path) -> None:
    ours = trainer("ours", tmp_path)
    ours.train()
    measured = ours.evaluate(ours.train_dataset)["eval_loss"]
    ours.model.merge_adapter()
    with pytest.raises(RequestError, match="unmerge_adapter"):
        ours.evaluate(ours.train_dataset)
    ours.model.unmerge_adapter()
    assert ours.evaluate(ours.train_dataset)["eval_loss"] == pytest.approx(measured, abs=1e-5)


def test_a_loss_that_needs_a_reference_cannot_follow_one_that_had_none(tmp_path: Path) -> None:
    ours = trainer("ours", tmp_path, {"loss_type": "orpo"})
    ours.loss_types = ["sigmoid"]
    with pytest.raises(RequestError, match="needs a reference now"):
        ours.train()


def test_an_adapter_that_is_put_on_later_is_trained(tmp_path: Path) -> None:
    from peft import get_peft_model

    ours = trainer("ours", tmp_path, peft=lambda: None, further=lambda: {"ref_model": model_for(tiny_tokenizer())})
    ours.model = ours.model_wrapped = get_peft_model(ours.model, lora())
    ours.train()
    before = trained(tmp_path)[1]
    assert losses(ours)[0] == pytest.approx(losses(before)[0])
    assert any(weight.abs().sum() > 0 for name, weight in ours.model.named_parameters() if "lora_B" in name)


def test_a_method_that_is_put_on_the_class_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = DPOTrainer.compute_loss
    monkeypatch.setattr(DPOTrainer, "compute_loss", lambda *args, **rest: former(*args, **rest))
    ours = DPOTrainer(
        model_for(tiny_tokenizer()),
        args=DPOConfig(**arguments(tmp_path)),
        train_dataset=chat_pairs(8),
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )
    assert ours.form_reason == "DPOTrainer overrides compute_loss"
