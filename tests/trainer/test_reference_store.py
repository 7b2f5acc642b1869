"""Runs with the reference store are the runs without it; what can be reused is, and nothing else."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig, get_peft_model
from tiny import tiny_tokenizer
from transformers import TrainerCallback

from trainer.preference_runs import adapter, arguments, chat_pairs, losses, model_for
from wishbone import DPOConfig, DPOTrainer
from wishbone.errors import RequestError
from wishbone.reference.cache import CachedReference
from wishbone.reference.reference import AdapterDisabled
from wishbone.reference.synchronized import SynchronizedAdapter

pytestmark = pytest.mark.long

PAIRS = 40


def prepared(folder: Path, store: str, *, model: Any = None, eval_pairs: int = 0, **overrides: Any) -> DPOTrainer:
    """A trainer of five steps, an epoch, over `chat_pairs(40)`."""
    options = arguments(folder, max_steps=5, reference_store=store, learning_rate=1e-3)
    tokenizer = tiny_tokenizer()
    return DPOTrainer(
        model or model_for(tokenizer),
        args=DPOConfig(**{**options, **overrides}),
        train_dataset=chat_pairs(PAIRS),
        eval_dataset=chat_pairs(eval_pairs, seed=1) if eval_pairs else None,
        processing_class=tokenizer,
        peft_config=None if hasattr(model, "peft_config") else LoraConfig(r=4, target_modules="all-linear"),
    )


def trained(folder: Path, store: str, **overrides: Any) -> DPOTrainer:
    trainer = prepared(folder, store, **overrides)
    trainer.train()
    return trainer


def use(trainer: DPOTrainer) -> tuple[int, int]:
    """Pairs reused and computed."""
    reference = trainer.preference_step.reference  # type: ignore[union-attr]
    assert isinstance(reference, CachedReference)
    return reference.reused, reference.computed


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "references.sqlite")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that an ordinary run leaves."""
    folder = tmp_path_factory.mktemp("first")
    trained(folder / "run", str(folder / "references.sqlite"))
    return folder / "references.sqlite"


@pytest.fixture
def filled(first_run: Path, store: str) -> str:
    """A copy of it."""
    shutil.copy(first_run, store)
    return store


def test_off_cold_and_warm_are_one_run_bit_by_bit(tmp_path: Path, store: str) -> None:
    off, cold, warm = (trained(tmp_path / "run", where) for where in ("off", store, store))
    assert isinstance(off.preference_step.reference, AdapterDisabled)
    assert use(cold) == (0, PAIRS)
    assert use(warm) == (PAIRS, 0)
    assert losses(off) == losses(cold) == losses(warm)
    assert torch.equal(adapter(off), adapter(cold)) and torch.equal(adapter(off), adapter(warm))
    log = warm.state.log_history[-1]
    assert (log["train_reference_reused"], log["train_reference_computed"]) == (PAIRS, 0)
    assert not [name for name in off.state.log_history[-1] if "reference" in name]


@pytest.mark.parametrize(
    "other",
    [
        {"beta": 0.4},
        {"learning_rate": 3e-3, "weight_decay": 0.1, "seed": 11},
        {"loss_type": ["ipo"], "max_steps": 8},
        {"loss_type": ["aot", "sft"], "loss_weights": [1.0, 0.5], "token_budget": 100},
        {"loss_type": ["rdpo"], "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"use_weighting": True, "f_divergence_type": "js_divergence", "max_length": 200},
    ],
)
def test_other_hyperparameters_reuse_everything(tmp_path: Path, filled: str, other: dict[str, Any]) -> None:
    kept, live = (trained(tmp_path / "elsewhere", where, **other) for where in (filled, "off"))
    assert use(kept) == (kept.trained_pairs, 0)
    assert losses(kept) == pytest.approx(losses(live), abs=1e-6, rel=1e-6)


def test_later_epochs_reuse_the_first(tmp_path: Path, store: str) -> None:
    kept, live = (trained(tmp_path, where, max_steps=15) for where in (store, "off"))
    assert use(kept) == (2 * PAIRS, PAIRS)
    assert losses(kept) == pytest.approx(losses(live), abs=1e-6, rel=1e-6)
    assert (adapter(kept) - adapter(live)).norm() <= 1e-5 * adapter(live).norm()


def test_other_adapters_of_one_base_model_reuse_it(tmp_path: Path, filled: str) -> None:
    small = get_peft_model(model_for(tiny_tokenizer()), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    assert use(trained(tmp_path, filled, model=small)) == (PAIRS, 0)  # its frozen copy adds nothing


class StopAt(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
        control.should_training_stop = state.global_step == 4


def test_a_resumed_run_reuses_what_the_stopped_one_computed(tmp_path: Path, store: str) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8, "lr_scheduler_type": "linear"}
    whole = trained(tmp_path / "whole", "off", **saving)
    stopped = prepared(tmp_path / "parts", store, **saving)
    stopped.add_callback(StopAt())
    stopped.train()
    assert use(stopped) == (0, 32)
    resumed = prepared(tmp_path / "parts", store, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    reused, computed = use(resumed)
    assert (reused + computed, computed) == (48, 8)
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6, rel=1e-6)


def test_evaluation_reuses_too(tmp_path: Path, store: str) -> None:
    trainer = prepared(tmp_path, store, eval_pairs=12)
    before = trainer.evaluate()
    assert use(trainer) == (0, 12)
    assert trainer.evaluate()["eval_loss"] == before["eval_loss"]
    assert use(trainer) == (12, 12)
    another, live = (prepared(tmp_path, where, eval_pairs=12, loss_type=["ipo"]) for where in (store, "off"))
    assert another.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], abs=1e-6)
    assert use(another) == (12, 0)


def test_one_changed_element_of_the_base_weights_is_another_reference(tmp_path: Path, filled: str) -> None:
    model = model_for(tiny_tokenizer())
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[3, 5] += 1e-3
    kept, live = (trained(tmp_path, where, model=copy.deepcopy(model)) for where in (filled, "off"))
    assert use(kept) == (0, PAIRS)
    assert losses(kept) == losses(live)


def test_another_dtype_is_another_reference(tmp_path: Path, filled: str) -> None:
    assert use(trained(tmp_path, filled, model=model_for(tiny_tokenizer()).double())) == (0, PAIRS)
    assert use(trained(tmp_path, filled, bf16=True)) == (0, PAIRS)  # autocast
    assert use(trained(tmp_path, filled)) == (PAIRS, 0)


def test_only_pairs_that_are_cut_otherwise_are_computed(tmp_path: Path, filled: str) -> None:
    rows = prepared(tmp_path, "off").train_dataset
    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    limit = {"max_length": sorted(lengths)[25], "truncation_mode": "keep_end"}
    cut = sum(length > limit["max_length"] for length in lengths)
    assert 0 < cut < PAIRS
    kept, live = (trained(tmp_path, where, **limit) for where in (filled, "off"))
    assert use(kept) == (PAIRS - cut, cut)
    assert losses(kept) == pytest.approx(losses(live), abs=1e-6, rel=1e-6)


def test_ld_dpo_has_values_of_its_own(tmp_path: Path, filled: str) -> None:
    live = trained(tmp_path, "off", ld_alpha=0.5)
    for expected in ((0, PAIRS), (PAIRS, 0)):
        kept = trained(tmp_path, filled, ld_alpha=0.5)
        assert use(kept) == expected
        assert losses(kept) == losses(live)


def continued(seed: int) -> Any:
    """A model that comes with a trained adapter."""
    model = get_peft_model(model_for(tiny_tokenizer()), LoraConfig(r=4, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def test_an_existing_adapter_is_part_of_the_reference(tmp_path: Path, filled: str) -> None:
    assert use(trained(tmp_path, filled, model=continued(0))) == (0, PAIRS)
    again, live = (trained(tmp_path, where, model=continued(0), beta=0.3) for where in (filled, "off"))
    assert use(again) == (PAIRS, 0)
    assert losses(again) == losses(live)
    assert losses(live)[0] == pytest.approx(0.693147, abs=1e-6)
    assert use(trained(tmp_path, filled, model=continued(1))) == (0, PAIRS)


def fine_tuned(folder: Path, store: str, **overrides: Any) -> DPOTrainer:
    tokenizer = tiny_tokenizer()
    trainer = DPOTrainer(
        model_for(tokenizer),
        model_for(tokenizer),
        args=DPOConfig(**arguments(folder, max_steps=5, reference_store=store, **{"learning_rate": 1e-4, **overrides})),
        train_dataset=chat_pairs(PAIRS),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def test_full_fine_tuning_with_a_separate_reference(tmp_path: Path, filled: str) -> None:
    kept, live = (fine_tuned(tmp_path, where, beta=0.2) for where in (filled, "off"))
    assert use(kept) == (PAIRS, 0)  # the base model of the run that filled the store
    assert losses(kept) == losses(live)


def test_a_reference_that_follows_the_policy_is_not_kept(tmp_path: Path, store: str) -> None:
    trainer = prepared(tmp_path, "auto", sync_ref_model=True)
    assert isinstance(trainer.preference_step.reference, SynchronizedAdapter)
    with pytest.raises(RequestError, match="because it follows the policy; set it to 'auto' or 'off'"):
        prepared(tmp_path, store, sync_ref_model=True)


@pytest.mark.parametrize("value", ["", None, False, 3])
def test_a_place_that_is_no_text_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(RequestError, match=r"reference_store .* must be 'auto', 'off' or the path of a file"):
        DPOConfig(**arguments(tmp_path, reference_store=value))


def test_streamed_pairs_are_remembered(tmp_path: Path, store: str) -> None:
    rows = chat_pairs(PAIRS).to_list()
    tokenizer = tiny_tokenizer()
    trainer = DPOTrainer(
        model_for(tokenizer),
        args=DPOConfig(**arguments(tmp_path, reference_store=store, max_steps=10)),
        train_dataset=IterableDataset.from_generator(lambda: iter(rows)),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    assert use(trainer) == (PAIRS, PAIRS)


def test_a_damaged_store_costs_time_and_nothing_else(
    tmp_path: Path, filled: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray(Path(filled).read_bytes())
    data[6500:7100] = os.urandom(600)
    Path(filled).write_bytes(data)
    kept, live = (trained(tmp_path, where) for where in (filled, "off"))
    assert "The reference store" in caplog.text
    assert use(kept)[1] > 0
    assert losses(kept) == pytest.approx(losses(live), abs=1e-6)
    assert use(trained(tmp_path, filled)) == (PAIRS, 0)
