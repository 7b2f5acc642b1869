"""Processes that are several by their environment and would each train alone are refused, with the remedy."""

from __future__ import annotations

import pytest

from wishbone.errors import RequestError
from wishbone.run.processes import NEEDED, STARTERS, refuse_to_train_apart

WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", *NEEDED, *STARTERS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": ""},
        WHOLE,
        WHOLE | {"SLURM_STEP_NUM_TASKS": "2"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script, which runs once
        {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_one_process_and_what_launchers_start_pass(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refuse_to_train_apart()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set.*torchrun.*unset WORLD_SIZE"),
        ({**WHOLE, "LOCAL_RANK": ""}, "but LOCAL_RANK is not set, and each process would train alone"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started this command 8 times.*--nodes N --meet-at HOST"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started this command 2 times"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', and it is a number of processes"),
    ],
)
def test_others_are_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match=said):
        refuse_to_train_apart()
