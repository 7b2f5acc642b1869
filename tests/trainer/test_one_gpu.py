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
from wishbone.errors import RequestError
from wishbone.trainer.one_gpu import placement, refuse_split, with_one_gpu


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


@pytest.mark.parametrize("places", [{"": 0}, {"a": 0, "b": "cpu"}, {"a": "cuda:1", "b": "disk"}, {}, None])
def test_layers_on_one_device(places: dict[str, Any] | None) -> None:
    refuse_split(SimpleNamespace(hf_device_map=places))


def test_a_split_model_is_refused_before_the_start(tmp_path: Path) -> None:
    """In TRL 1.16 it ends in "Expected all tensors to be on the same device", seen on two GPUs."""
    model = model_for(tiny_tokenizer())
    model.hf_device_map = {"": "cuda:0", "model.layers.1": "cuda:1"}
    with pytest.raises(RequestError, match=r"2 devices \(cuda:0, cuda:1\).*torchrun --nproc-per-node 2"):
        trained(seeing(tmp_path, 2), model)
