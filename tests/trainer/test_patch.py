"""`PatchDPOTrainer()`: TRL's names, imported before or after, make Wishbone's trainer, until it is undone."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import trl
import trl.trainer
import trl.trainer.dpo_trainer
from peft import LoraConfig
from tiny import tiny_tokenizer
from transformers import TrainingArguments
from trl.trainer.dpo_config import DPOConfig as TRLDPOConfig
from trl.trainer.dpo_trainer import DPOTrainer as EarlyTrainer

import wishbone
from trainer.preference_runs import arguments, chat_pairs, losses, model_for
from wishbone import DPOConfig, DPOTrainer, PatchDPOTrainer, UnpatchDPOTrainer
from wishbone.errors import RequestError
from wishbone.trainer import patch

PLACES = (trl, trl.trainer, trl.trainer.dpo_trainer)


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    UnpatchDPOTrainer()


def made_by(trainer_class: type, tmp_path: Path, config_class: type = TRLDPOConfig) -> object:
    tokenizer = tiny_tokenizer()
    return trainer_class(
        model=model_for(tokenizer),
        args=config_class(**arguments(tmp_path, max_steps=1)),
        train_dataset=chat_pairs(8),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )


def test_names_change_and_come_back_and_calling_twice_changes_nothing(tmp_path: Path):
    PatchDPOTrainer()
    PatchDPOTrainer()
    assert all(place.DPOTrainer is DPOTrainer and place.DPOConfig is DPOConfig for place in PLACES)
    UnpatchDPOTrainer()
    UnpatchDPOTrainer()
    assert all(place.DPOTrainer is EarlyTrainer and place.DPOConfig is TRLDPOConfig for place in PLACES)
    assert type(made_by(EarlyTrainer, tmp_path)) is EarlyTrainer


def test_a_class_imported_before_makes_wishbones_trainer(tmp_path: Path):
    with PatchDPOTrainer():
        trainer = made_by(EarlyTrainer, tmp_path)
        assert type(trainer) is DPOTrainer and trainer.preference_step is not None
    assert type(made_by(EarlyTrainer, tmp_path)) is EarlyTrainer
    assert type(made_by(DPOTrainer, tmp_path)) is DPOTrainer


def test_the_context_ends_only_a_patch_that_it_began():
    PatchDPOTrainer()
    with PatchDPOTrainer():
        pass
    assert trl.DPOTrainer is DPOTrainer


def test_an_error_inside_the_context_still_ends_it():
    with pytest.raises(KeyError), PatchDPOTrainer():
        raise KeyError
    assert trl.DPOTrainer is EarlyTrainer


def test_trls_configuration_can_be_pickled_while_patched(tmp_path: Path):
    with PatchDPOTrainer():
        config = TRLDPOConfig(**arguments(tmp_path))
        assert pickle.loads(pickle.dumps(config)).beta == config.beta


def test_a_class_derived_before_stays_trls_and_one_derived_after_is_ours(tmp_path: Path, caplog):
    class Before(EarlyTrainer):
        pass

    with PatchDPOTrainer():

        class After(trl.DPOTrainer):
            pass

        before, after = made_by(Before, tmp_path), made_by(After, tmp_path)
    assert not isinstance(before, DPOTrainer)
    assert "Before was derived from TRL's DPOTrainer before PatchDPOTrainer() was called" in caplog.text
    assert isinstance(after, DPOTrainer) and after.preference_step is not None


def test_a_class_with_its_own_loss_runs_it_on_trls_path(tmp_path: Path, caplog):
    class Doubled(DPOTrainer):
        def _compute_loss(self, model, inputs, return_outputs):
            outcome = super()._compute_loss(model, inputs, return_outputs)
            return (2 * outcome[0], outcome[1]) if return_outputs else 2 * outcome

    plain, doubled = made_by(EarlyTrainer, tmp_path), made_by(Doubled, tmp_path)
    plain.train()
    doubled.train()
    assert "because Doubled overrides _compute_loss" in caplog.text
    assert losses(doubled) == pytest.approx([2 * loss for loss in losses(plain)], rel=1e-5)


def test_an_untested_trl_is_refused_and_nothing_is_changed(monkeypatch: pytest.MonkeyPatch):
    def refuse() -> None:
        raise RequestError("TRL 9 is not tested: install trl>=1.16,<1.17")

    monkeypatch.setattr(patch, "check_trl", refuse)
    with pytest.raises(RequestError, match=r"install trl>=1\.16"):
        PatchDPOTrainer()
    assert trl.DPOTrainer is EarlyTrainer


@pytest.mark.long
def test_in_a_fresh_process_after_the_import_from_trl():
    """The other order is that of the README, whose lines are run."""
    lines = "from trl import DPOTrainer as A\nfrom trl.trainer.dpo_trainer import DPOTrainer as B"
    call = "from wishbone import PatchDPOTrainer; PatchDPOTrainer()"
    program = f"{lines}\n{call}\nprint(*(type(one.__new__(one)).__module__ for one in (A, B)))"
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert outcome.stdout.split() == ["wishbone.trainer.trainer"] * 2


def test_arguments_of_older_notebooks(tmp_path: Path, caplog):
    tokenizer = tiny_tokenizer()
    options = arguments(tmp_path, max_steps=2)
    own = {name: options.pop(name) for name in ("max_length",)}
    old = DPOTrainer(
        model=model_for(tokenizer),
        ref_model=None,
        args=TrainingArguments(**options),
        beta=0.3,
        train_dataset=chat_pairs(16),
        tokenizer=tokenizer,
        max_prompt_length=6,
        loss_type="ipo",
        padding_value=0,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        **own,
    )
    new = DPOTrainer(
        model=model_for(tokenizer),
        args=DPOConfig(**options, **own, beta=0.3, loss_type="ipo", max_prompt_length=6, remove_unused_columns=True),
        train_dataset=chat_pairs(16),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    old.train()
    new.train()
    assert old.beta == 0.3 and old.loss_types == ["ipo"]
    assert max(len(ids) for ids in old.train_dataset["prompt_ids"]) == 6
    assert losses(old) == losses(new)
    assert "padding_value has no meaning any more" in caplog.text


def test_prompts_that_are_too_long_keep_their_end(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    trainers = [
        DPOTrainer(
            model=model_for(tokenizer),
            args=DPOConfig(**arguments(tmp_path, max_prompt_length=limit)),
            train_dataset=chat_pairs(8),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4),
        )
        for limit in (None, 5)
    ]
    whole, cut = (list(trainer.train_dataset["prompt_ids"]) for trainer in trainers)
    assert cut == [ids[-5:] for ids in whole]
    assert trainers[0].train_dataset["chosen_ids"] == trainers[1].train_dataset["chosen_ids"]


def test_unknown_arguments_are_refused_all_at_once(tmp_path: Path):
    with pytest.raises(RequestError) as refusal:
        DPOTrainer(model=None, args=TrainingArguments(str(tmp_path)), betta=0.1, train_datasets=[], beta=0.1)
    assert refusal.value.problems == [
        "DPOTrainer has no argument 'betta' (near: beta); remove it or correct its name",
        "DPOTrainer has no argument 'train_datasets' (near: train_dataset, eval_dataset); "
        "remove it or correct its name",
    ]
    with pytest.raises(RequestError, match="args is a dict; give a DPOConfig"):
        DPOTrainer(model=None, args={"beta": 1})
    with pytest.raises(RequestError, match="tokenizer and processing_class were both given"):
        DPOTrainer(model=None, tokenizer=tiny_tokenizer(), processing_class=tiny_tokenizer())
    with pytest.raises(RequestError, match="activations 'none' is not known"):
        DPOConfig(str(tmp_path), activations="none")


def test_moved_settings_are_checked_like_given_ones(tmp_path: Path):
    with pytest.raises(RequestError) as refusal:
        DPOTrainer(model=None, args=DPOConfig(str(tmp_path)), loss_weights=[1, 2], max_prompt_length=0)
    assert sorted(refusal.value.problems) == [
        "loss_weights has 2 values for 1 loss types",
        "max_prompt_length 0 must be 1 or more, or None for no limit",
    ]


def test_the_default_configuration_works_without_a_gpu(tmp_path: Path):
    assert DPOConfig(str(tmp_path)).bf16 is (torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    assert DPOConfig(str(tmp_path), use_cpu=True).bf16 is True


def test_the_public_names():
    assert {"PatchDPOTrainer", "UnpatchDPOTrainer", "FastLanguageModel", "is_bfloat16_supported"} <= set(
        wishbone.__all__
    )


def test_every_other_name_of_trl_says_where_it_is() -> None:
    names = [name for name in dir(trl) if name in {each for of in trl._import_structure.values() for each in of}]
    assert len(names) > 20
    for name in set(names) - {"DPOConfig", "DPOTrainer"}:
        with pytest.raises(ImportError, match=f"wishbone has no {name}: from trl import {name}"):
            exec(f"from wishbone import {name}")
