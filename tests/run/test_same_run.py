"""Processes that were given different things are refused, with what each has; what may differ does not count."""

from __future__ import annotations

from typing import Any

import pytest

from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError
from wishbone.run.resume import settings_of_processes
from wishbone.trainer import same_run
from wishbone.trainer.same_run import refuse_differences


def given(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"model": {"name": "m"}, "data": {"train": "d", "eval": "e"}, "training": {}, "output": {}}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        values[section][field] = value
    return settings_of_processes(RunConfig.model_validate(values))


def test_each_difference_is_named_with_what_processes_have(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [{"learning_rate": "0.1", "pairs": "5"}, {"learning_rate": "0.2", "pairs": "5", "seed": "1"}]
    monkeypatch.setattr(same_run, "gather_object", lambda own: own + others)
    with pytest.raises(RequestError) as refused:
        refuse_differences({"learning_rate": 0.1, "pairs": 5})
    lines = [line for line in str(refused.value).splitlines() if line.startswith("  - ")]
    assert lines == [
        "  - learning_rate is 0.1 in process 0 and 0.2 in process 2",
        "  - seed is not there in process 0 and 1 in process 2",
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
