"""Data of every kind, and what a user can ask a trainer about it, beside TRL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from trl.trainer.dpo_trainer import DataCollatorForPreference

from trainer.preference_runs import chat_pairs, losses
from trainer.side_by_side import assert_on_step, assert_same, trained, trainers, under_its_set
from wishbone.trainer.collator import PairCollator

pytestmark = pytest.mark.long

TIMES = ("runtime", "per_second", "reference")


def stream(count: int = 16, seed: int = 0) -> IterableDataset:
    rows = chat_pairs(count, seed).to_list()
    return IterableDataset.from_generator(lambda: iter(rows))


def texts() -> Dataset:
    completions = [" sat on a mat" * (i % 3 + 1) for i in range(16)]
    return Dataset.from_list(
        [{"prompt": f"the cat {i}", "chosen": c, "rejected": " fell" * (i % 2)} for i, c in enumerate(completions)]
    )


def implicit() -> Dataset:
    return Dataset.from_list(
        [
            {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
            for row in chat_pairs(16)
        ]
    )


def with_tools() -> Dataset:
    return Dataset.from_list([{**row, "tools": "[]", "chat_template_kwargs": {"more": 1}} for row in chat_pairs(16)])


def with_lengths() -> Dataset:
    return chat_pairs(16).add_column("length", [i % 5 + 1 for i in range(16)])


@pytest.mark.parametrize("data", [texts, implicit, with_tools, stream], ids=lambda data: data.__name__)
def test_kinds_of_data(tmp_path: Path, data: Callable[[], Any]) -> None:
    theirs, ours = trained(tmp_path, data=data)
    assert_on_step(ours)
    assert_same(theirs, ours)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 60},
        {"max_length": 30, "truncation_mode": "keep_end"},
        {"max_length": 60, "accelerator_config": {"dispatch_batches": True}},
    ],
    ids=str,
)
def test_streams_that_are_cut(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs, ours = trained(tmp_path, options, data=stream)
    assert_on_step(ours)
    assert_same(theirs, ours)


def test_a_stream_that_ends_within_a_step(tmp_path: Path) -> None:
    theirs, ours = trained(tmp_path, {"max_steps": 5, "gradient_accumulation_steps": 4}, data=lambda: stream(10))
    assert_same(theirs, ours)
    assert len(losses(ours)) == 5


def test_batches_of_like_lengths(tmp_path: Path) -> None:
    options = {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    theirs, ours = trained(tmp_path, options, data=with_lengths)
    assert_same(theirs, ours)


def test_pairs_whose_prompt_fills_max_length_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours = trained(tmp_path, {"max_length": 40, "max_steps": 2})
    assert_same(theirs, ours)
    assert 0 < len(ours.train_dataset) == len(theirs.train_dataset) < 16
    dropped = 16 - len(ours.train_dataset)
    assert f"{dropped} of 16 train pairs are dropped: the prompt alone fills max_length=40" in caplog.text


EVALUATION = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3}


@pytest.mark.parametrize(
    "heldout",
    [
        lambda: chat_pairs(6, seed=1),
        lambda: {"one": chat_pairs(6, seed=1), "two": chat_pairs(3, seed=2)},
        lambda: DatasetDict(one=chat_pairs(3, seed=1)),
        lambda: stream(6, seed=1),
        lambda: IterableDatasetDict(one=stream(6, seed=1)),
    ],
    ids=["data", "dict", "DatasetDict", "stream", "streams"],
)
@pytest.mark.parametrize("data", [lambda: chat_pairs(16), stream], ids=["data", "stream"])
def test_evaluation_while_training(tmp_path: Path, data: Callable[[], Any], heldout: Callable[[], Any]) -> None:
    theirs, ours = trained(tmp_path, EVALUATION, data=data, further=lambda: {"eval_dataset": heldout()})
    assert_same(theirs, ours)
    evaluations = [[entry for entry in t.state.log_history if "eval" in "".join(entry)] for t in (theirs, ours)]
    assert len(evaluations[0]) == len(evaluations[1]) > 0
    for their, our in zip(*evaluations, strict=True):
        compare(our, under_its_set(their))


def compare(our: dict[str, float], their: dict[str, float]) -> None:
    """Fail unless both have TRL's names and values; means over tokens are weighted otherwise within an interval."""
    assert their.keys() <= our.keys()
    for name, value in their.items():
        loose = any(part in name for part in ("entropy", "logits", "accuracy"))
        if not any(part in name for part in TIMES):
            assert our[name] == pytest.approx(value, rel=1e-3, abs=5e-2 if loose else 1e-4), name


def test_means_are_over_pairs_whatever_the_batches(tmp_path: Path) -> None:
    def heldout() -> dict[str, Any]:
        return {"eval_dataset": chat_pairs(5, seed=1)}

    _, whole = trained(tmp_path / "5", {"per_device_eval_batch_size": 5}, further=heldout)
    theirs, parts = trained(tmp_path / "4", {"per_device_eval_batch_size": 4}, further=heldout)
    names = ["eval_rewards/chosen", "eval_logps/rejected", "eval_entropy", "eval_mean_token_accuracy"]
    means = {name: whole.evaluate()[name] for name in names}
    assert {name: parts.evaluate()[name] for name in names} == pytest.approx(means, rel=1e-3)
    assert theirs.evaluate()["eval_logps/rejected"] != pytest.approx(means["eval_logps/rejected"], rel=1e-3)


@pytest.mark.parametrize("precompute", [False, True])
def test_data_given_to_evaluate(tmp_path: Path, precompute: bool) -> None:
    theirs, ours = trained(tmp_path, {"precompute_ref_log_probs": precompute, "per_device_eval_batch_size": 3})
    for heldout in (chat_pairs(6, seed=3), {"one": chat_pairs(3, seed=4), "two": chat_pairs(3, seed=5)}):
        their, our = (trainer.evaluate(heldout, metric_key_prefix="test") for trainer in (theirs, ours))
        compare(our, their)
        assert any(name.startswith("test_") and name.endswith("loss") for name in our)


def test_a_stored_reference_cannot_be_had_of_a_stream(tmp_path: Path) -> None:
    for_both = {"precompute_ref_log_probs": True}
    with pytest.raises(ValueError, match="not supported with IterableDataset"):
        trainers(tmp_path, for_both, data=stream)


def test_predictions(tmp_path: Path) -> None:
    theirs, ours = trained(tmp_path, further=lambda: {"eval_dataset": chat_pairs(6, seed=1)})
    before = ours.evaluate()
    their, our = (trainer.predict(trainer.eval_dataset.select(range(5))) for trainer in (theirs, ours))
    compare(ours.evaluate(), before)
    assert our.predictions.shape == their.predictions.shape
    assert (our.label_ids == their.label_ids).all()
    seen = their.label_ids != theirs.processing_class.pad_token_id
    assert our.predictions[seen] == pytest.approx(their.predictions[seen], rel=1e-3, abs=2e-3)
    compare(our.metrics, their.metrics)


def test_predictions_of_the_loss_alone(tmp_path: Path) -> None:
    theirs, ours = trained(tmp_path, {"prediction_loss_only": True})
    their, our = (trainer.predict(trainer.train_dataset) for trainer in (theirs, ours))
    assert our.predictions is None and their.predictions is None
    compare(our.metrics, their.metrics)


def test_evaluation_options_of_transformers(tmp_path: Path) -> None:
    options = {
        "eval_accumulation_steps": 1,
        "eval_do_concat_batches": False,
        "batch_eval_metrics": True,
        "include_for_metrics": ["inputs", "loss"],
        "eval_on_start": True,
        **EVALUATION,
    }
    theirs, ours = trained(tmp_path, options, further=lambda: {"eval_dataset": chat_pairs(6, seed=1)})
    assert_on_step(ours)
    assert_same(theirs, ours)
    compare(ours.evaluate(), theirs.evaluate())


def test_readers_of_data_loaders_find_trls_batches(tmp_path: Path) -> None:
    theirs, ours = trainers(tmp_path, {"pad_to_multiple_of": 8, "precompute_ref_log_probs": True})
    for their, our in zip(theirs.get_train_dataloader(), ours.get_train_dataloader(), strict=True):
        assert our.keys() == {*their, "pairs"}
        for name in their.keys() - {"ref_chosen_logps", "ref_rejected_logps"}:
            assert torch.equal(our[name], their[name]), name
        assert torch.allclose(our["ref_rejected_logps"], their["ref_rejected_logps"])


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
@pytest.mark.parametrize("max_length", [None, 7, 4])
@pytest.mark.parametrize("multiple", [None, 1, 5])
def test_the_collators_tensors_are_trls(truncation: str, max_length: int | None, multiple: int | None) -> None:
    rows = [
        {
            "prompt_ids": [3] * prompt,
            "chosen_ids": [4] * chosen,
            "rejected_ids": [5] * rejected,
            "ref_chosen_logps": -0.5,
        }
        for prompt, chosen, rejected in [(1, 5, 2), (5, 1, 1), (3, 0, 4), (0, 2, 1)]
    ]
    options = {"max_length": max_length, "truncation_mode": truncation, "pad_to_multiple_of": multiple}
    ours = PairCollator(pad_token_id=9, **options)(rows)
    theirs = DataCollatorForPreference(pad_token_id=9, **options)(rows)
    assert len(ours.pop("pairs")) == 4
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype, name
