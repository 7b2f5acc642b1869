"""Processes that were given different things are refused, with what each has; what may differ does not count."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError, RunError
from wishbone.run.resume import settings_of_processes
from wishbone.trainer import same_run
from wishbone.trainer.same_run import compare_processes, failure_announced, from_all, refuse_differences


def given(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"model": {"name": "m"}, "data": {"train": "d", "eval": "e"}, "training": {}, "output": {}}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        values[section][field] = value
    return settings_of_processes(RunConfig.model_validate(values))


def test_each_difference_is_named_with_what_processes_have(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [{"learning_rate": "0.1", "pairs": "5"}, {"learning_rate": "0.2", "pairs": "5", "seed": "1"}]
    monkeypatch.setattr(same_run, "from_all", lambda own: [own, *others])
    with pytest.raises(RequestError) as refused:
        refuse_differences({"learning_rate": 0.1, "pairs": 5})
    lines = [line for line in str(refused.value).splitlines() if line.startswith("  - ")]
    assert lines == [
        "  - learning_rate is 0.1 in process 0 and 0.2 in process 2",
        "  - seed is absent in process 0 and 1 in process 2",
    ]
    others.pop()
    refuse_differences({"learning_rate": 0.1, "pairs": 5})


@pytest.mark.parametrize(
    "change",
    [
        {"training__learning_rate": 1e-3},
        {"training__batch_size": 2},
        {"training__max_steps": 3},
        {"training__eval_steps": 3},
        {"training__save_steps": 3},
        {"training__guard": "off"},
    ],
)
def test_settings_that_change_a_result_or_when_processes_meet_count(change: dict[str, Any]) -> None:
    assert given(**change) != given()


def test_where_files_lie_and_what_a_machine_logs_may_differ() -> None:
    assert given(data__train="elsewhere", model__name="other", output__dir="run", training__logging_steps=5) == given()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store of a run of three processes, of which this one is the first."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(same_run, "_rendezvous_store", lambda: store)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    return store


def test_texts_come_in_the_order_of_ranks_at_each_turn(store: Any) -> None:
    for turn in ("1", "2"):
        for rank in (2, 1):
            store.set(f"{turn} of {rank}", json.dumps({"turn": turn, "rank": str(rank)}))
        assert from_all({"mine": turn}) == [{"mine": turn}, *({"turn": turn, "rank": rank} for rank in "12")]


def test_what_does_not_come_is_named_and_not_waited_for_for_ever(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(same_run, "PATIENCE", 0.06)
    monkeypatch.setattr(same_run, "SAID_AFTER", 0.0)
    store.set("1 of 1", "{}")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(RunError, match=r"^process 2 of this run did not arrive within"),
    ):
        from_all({})
    assert caplog.text.count("Waiting for process 2") == 1


def test_a_failure_is_told_to_those_that_wait(store: Any) -> None:
    with pytest.raises(OSError, match="no such file"), failure_announced():
        raise OSError("no such file")
    with pytest.raises(RunError, match=r"^process 0 of this run failed: no such file$"):
        from_all({})


def test_a_group_of_which_accelerate_knows_nothing_is_refused(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `torch.multiprocessing.spawn` and `init_process_group` without the variables of launchers."""
    with pytest.raises(RequestError, match=r"one of 3 processes of a group.*LOCAL_RANK.*torchrun"):
        compare_processes(TrainingArguments("x"), None, 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    compare_processes(TrainingArguments("x"), None, 1)
