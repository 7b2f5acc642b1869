"""A script that sees several GPUs trains on the first, says what uses all of them, and splits no model that fits."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig
from tiny import tiny_tokenizer

from trainer.preference_runs import arguments, chat_pairs, losses, model_for
from wishbone import DPOConfig, DPOTrainer
from wishbone.trainer.one_gpu import is_split, placement, with_one_gpu

TWO = {"": "cuda:0", "model.layers.1": "cuda:1"}


def seeing(folder: Path, gpus: int, **options: Any) -> DPOConfig:
    """Arguments of a script that sees so many GPUs, as transformers counts them."""
    config = DPOConfig(**arguments(folder, max_steps=1, **options))
    config._n_gpu = gpus
    return config


def trained(config: DPOConfig, model: Any) -> DPOTrainer:
    tokenizer, peft_config = tiny_tokenizer(), LoraConfig(r=4, target_modules="all-linear")
    trainer = DPOTrainer(
        model, args=config, train_dataset=chat_pairs(8), processing_class=tokenizer, peft_config=peft_config
    )
    trainer.train()
    return trainer


def test_it_trains_on_one_and_names_the_command_for_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["examples/mine.py", "--beta", "0.1"])
    config = seeing(tmp_path, 2)
    with caplog.at_level(logging.WARNING):
        several = trained(config, model_for(tiny_tokenizer()))
    assert "one of the 2 GPUs" in caplog.text and "torchrun --nproc-per-node 2 mine.py" in caplog.text
    assert several.form_reason is None and several.args.train_batch_size == 2
    assert losses(several) == losses(trained(seeing(tmp_path, 0), model_for(tiny_tokenizer())))
    assert config.n_gpu == 2, "the caller's arguments are the caller's"


def test_a_model_by_name_goes_to_the_first_that_holds_it(tmp_path: Path) -> None:
    """TRL alone would spread it over all of them."""
    config = seeing(tmp_path, 2)
    assert with_one_gpu(config, "name").model_init_kwargs == placement(config) == {"device_map": "sequential"}
    own = seeing(tmp_path, 2, model_init_kwargs={"device_map": "auto"})
    assert with_one_gpu(own, "name").model_init_kwargs == {"device_map": "auto"}
    assert placement(seeing(tmp_path, 1)) == {}


@pytest.mark.parametrize(("places", "split"), [(TWO, True), ({"": 0}, False), ({"a": 0, "b": "cpu"}, False)])
def test_layers_on_several_devices(places: dict[str, Any], split: bool) -> None:
    assert is_split(SimpleNamespace(hf_device_map=places)) is split


def test_a_split_model_takes_trls_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = model_for(tiny_tokenizer())
    model.hf_device_map = TWO
    with caplog.at_level(logging.WARNING):
        trainer = trained(seeing(tmp_path, 2), model)
    assert trainer.preference_step is None and "lie on several devices" in caplog.text
    assert "one of the 2 GPUs" not in caplog.text
