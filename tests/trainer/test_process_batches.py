"""Options that would part pairs in several processes, order them otherwise or lose their values, are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DataLoaderConfiguration
from datasets import Dataset

from trainer.preference_runs import arguments, chat_pairs
from wishbone import DPOConfig
from wishbone.errors import RequestError
from wishbone.trainer.process_batches import refuse_cut_batches
from wishbone.trainer.request import _refuse_values_of_one_process


def refuse(folder: Path, loading: dict[str, Any], processes: int, *, shared: bool = True, **options: Any) -> None:
    options = {"per_device_train_batch_size": 6, "per_device_eval_batch_size": 3} | options
    config = DPOConfig(**arguments(folder, **options))
    chosen = DataLoaderConfiguration(**({"use_seedable_sampler": True} | loading))
    accelerator: Any = SimpleNamespace(num_processes=processes, dataloader_config=chosen)
    refuse_cut_batches(config, accelerator, shared=shared, evaluates=True)


@pytest.mark.parametrize(
    ("loading", "options", "problems"),
    [
        ({"dispatch_batches": True}, {}, ["all chosen ones first"]),
        ({"split_batches": True}, {}, ["per_device_eval_batch_size, 3, by the 2 processes; give a multiple of 2"]),
        (
            {"split_batches": True, "dispatch_batches": True},
            {"per_device_train_batch_size": 3},
            ["dispatch_batches", "per_device_train_batch_size, 3", "per_device_eval_batch_size, 3"],
        ),
        ({"use_seedable_sampler": False}, {"train_sampling_strategy": "random"}, ["another order than one process"]),
    ],
)
def test_they_are_refused_with_the_remedy(
    tmp_path: Path, loading: dict[str, Any], options: dict[str, Any], problems: list[str]
) -> None:
    refuse(tmp_path, loading, 1, **options)
    with pytest.raises(RequestError) as raised:
        refuse(tmp_path, loading, 2, **options)
    assert len(raised.value.problems) == len(problems)
    assert all(part in problem for part, problem in zip(problems, raised.value.problems, strict=True))
    assert all("in 2 processes" in problem for problem in raised.value.problems)


@pytest.mark.parametrize(
    ("loading", "options"),
    [
        ({}, {}),
        ({"split_batches": True}, {"per_device_eval_batch_size": 2}),
        ({"use_seedable_sampler": False}, {"train_sampling_strategy": "sequential"}),
        ({"use_seedable_sampler": False}, {"train_sampling_strategy": "random", "shared": False}),
        ({"even_batches": False}, {}),
    ],
)
def test_what_keeps_pairs_and_their_order_is_not(
    tmp_path: Path, loading: dict[str, Any], options: dict[str, Any]
) -> None:
    refuse(tmp_path, loading, 2, **options)


def test_precomputed_values_need_a_file_that_all_processes_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory TRL's second process would look for a file in a temporary directory of its own."""
    data = Dataset.from_list(list(chat_pairs(4)))
    data.to_json(tmp_path / "pairs.jsonl")
    on_disk = Dataset.from_json(str(tmp_path / "pairs.jsonl"), cache_dir=str(tmp_path))
    config = DPOConfig(**arguments(tmp_path, precompute_ref_log_probs=True))
    _refuse_values_of_one_process(config, data)
    monkeypatch.setattr(DPOConfig, "world_size", 2)
    _refuse_values_of_one_process(config, on_disk)
    with pytest.raises(
        RequestError, match="all 2 processes read them, and this data set has no files; load it from files"
    ):
        _refuse_values_of_one_process(config, data)
    _refuse_values_of_one_process(config.changed({"precompute_ref_log_probs": False}), data)
